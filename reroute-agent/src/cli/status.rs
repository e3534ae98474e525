//! `status`: one screen.

use super::{Common, Output};
use crate::service;
use axum::http::Method;

pub fn run(common: Common) -> anyhow::Result<()> {
    let status: serde_json::Value = service::ask_blocking(&common.socket, Method::GET, "/v1/status")?;
    match common.output {
        Output::Json | Output::Text => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    Ok(())
}
