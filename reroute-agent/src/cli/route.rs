//! `route`: the host's route to the service address.

use super::{Output, RouteVerb};
use crate::host::Adopted;
use crate::service;
use axum::http::Method;

/// Errors: no agent answers; [`super::Refused`] when no foreign route stands.
pub fn run(verb: RouteVerb) -> anyhow::Result<()> {
    let RouteVerb::Adopt(common) = verb;
    let adopted: Adopted = service::ask_blocking(&common.socket, Method::POST, "/v1/route/adopt")?;
    match common.output {
        Output::Json => println!("{}", serde_json::to_string(&adopted)?),
        Output::Text if adopted.replaced => println!("taken over: {}", adopted.found),
        Output::Text => {
            println!("allowed: {} is taken over as soon as this host's login says where to", adopted.found);
        }
    }
    Ok(())
}
