//! `bypass`: suspends or restores enforcement on this SCVM, at once and without Meta.

use super::{Common, Output, Switch};
use crate::service;
use axum::http::Method;
use serde_json::Value;

pub fn run(switch: Switch, common: Common) -> anyhow::Result<()> {
    let word = match switch {
        Switch::On => "on",
        Switch::Off => "off",
    };
    let path = format!("/v1/bypass/{word}?actor={}", actor());
    let answer: Value = service::ask_blocking(&common.socket, Method::POST, &path)?;
    match common.output {
        Output::Json => println!("{answer}"),
        Output::Text => {
            let node = answer["node"].as_str().unwrap_or("this node");
            match switch {
                Switch::On => {
                    println!("{node}: enforcement is suspended; ONE-WRITER IS NOT KEPT until `bypass off`")
                }
                Switch::Off => println!("{node}: enforcement is restored"),
            }
        }
    }
    Ok(())
}

/// Who asks, for the record; as it stands in a URL.
fn actor() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|key| std::env::var(key).ok());
    let user = name.unwrap_or_else(|| format!("uid-{}", rustix::process::getuid().as_raw()));
    user.chars().filter(|c| c.is_ascii_alphanumeric() || "._-@".contains(*c)).collect()
}
