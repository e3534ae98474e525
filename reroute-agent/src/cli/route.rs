//! `route`: the host's route to the service address.

use super::{Output, RouteVerb};
use crate::host::{Adopted, PinWish, Pinned};
use crate::service;
use axum::http::Method;
use serde_json::json;

/// Errors: no agent answers; [`super::Refused`] when what was asked for cannot be done as things stand.
pub fn run(verb: RouteVerb) -> anyhow::Result<()> {
    match verb {
        RouteVerb::Adopt(common) => {
            let adopted: Adopted = service::ask_blocking(&common.socket, Method::POST, "/v1/route/adopt")?;
            match common.output {
                Output::Json => println!("{}", serde_json::to_string(&adopted)?),
                Output::Text if adopted.replaced => println!("taken over: {}", adopted.found),
                Output::Text => {
                    let found = adopted.found;
                    println!("allowed: {found} is taken over as soon as this host's login says where to");
                }
            }
        }
        RouteVerb::Set { target, time, actor, common } => {
            let for_ms = time.map(|time| time.as_millis() as u64);
            let wish = PinWish { target: target.clone(), for_ms, actor };
            let pinned: Pinned = service::post_blocking(&common.socket, "/v1/route/set", json!(wish))?;
            let until =
                time.map_or_else(|| "until `route auto`".into(), |t| format!("for {} s", t.as_secs()));
            match common.output {
                Output::Json => println!("{}", serde_json::to_string(&pinned)?),
                Output::Text => println!("pinned to {target} {until}: it goes there in a quiet moment"),
            }
        }
        RouteVerb::Dry(common) => {
            let () = service::ask_blocking(&common.socket, Method::POST, "/v1/route/dry")?;
            match common.output {
                Output::Json => println!("{}", json!({ "mode": "dry" })),
                Output::Text => {
                    println!("dry: this host says what it would do (`status`, journal), and changes nothing")
                }
            }
        }
        RouteVerb::Auto(common) => {
            let pinned: Pinned = service::ask_blocking(&common.socket, Method::POST, "/v1/route/auto")?;
            match common.output {
                Output::Json => println!("{}", serde_json::to_string(&pinned)?),
                Output::Text => println!("nothing is pinned any more: this host goes where it is best"),
            }
        }
    }
    Ok(())
}
