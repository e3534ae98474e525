//! The verbs that ask a running lab.

use anyhow::Context;
use lab::control::Request;
use lab::directory::{self, Directory};
use lab::faults::Fault;
use lab::handle::{Lab, require_root};
use lab::options::Options;
use lab::topology::Node;
use std::time::Duration;

fn clean_stale() {
    for id in directory::clean_stale() {
        println!("removed what was left of lab {id:?}, whose supervisor is gone");
    }
}

pub fn up(options: Options) -> anyhow::Result<()> {
    require_root()?;
    clean_stale();
    let lab = Lab::start_detached(&options)?;
    if options.agents {
        lab.wait_healthy(Duration::from_secs(30)).context("the lab is up but not healthy")?;
    }
    let id = if options.id == "default" { String::new() } else { format!(" --id {}", options.id) };
    println!(
        "lab {:?} is up{}",
        options.id,
        if options.agents { " and healthy" } else { ", without agents" }
    );
    println!("  reroute-lab status{id}");
    println!("  reroute-lab exec{id} host1 -- ip route");
    println!("  reroute-lab fault{id}               (lists what can be broken)");
    println!("  reroute-lab down{id}");
    Ok(())
}

pub fn down(id: &str) -> anyhow::Result<()> {
    require_root()?;
    let held = Directory::of(id)?.is_held();
    clean_stale();
    if held {
        Lab::attach(id)?.down(Duration::from_secs(10))?;
        println!("lab {id:?} is down");
    } else {
        println!("no lab {id:?} is up");
    }
    Ok(())
}

pub fn status(id: &str, json: bool) -> anyhow::Result<()> {
    let lab = Lab::attach(id)?;
    let status = lab.status()?;
    if json {
        let view = lab.view().ok();
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "lab": status, "view": view }))?);
        return Ok(());
    }
    println!("lab {id:?}, {:?}, files at {}", status.options.server, lab.root().display());
    for process in &status.processes {
        let state = match &process.exit {
            None => format!("pid {}", process.pid),
            Some(exit) => format!("ended: code {:?}, signal {:?}", exit.code, exit.signal),
        };
        println!("  {:<18} {state}", process.name);
    }
    for fault in &status.faults {
        println!("  broken: {} at {}", fault.name, fault.target);
    }
    if status.options.agents {
        let out = lab.agent(&Node::Meta.to_string(), &["status"])?;
        print!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

pub fn fault(id: &str, name: Option<&str>, target: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else {
        for f in Fault::all() {
            println!(
                "{:<18} {:<5} {}; healed by {}",
                f.name,
                format!("{:?}", f.kind).to_lowercase(),
                f.does,
                f.healed_by
            );
        }
        return Ok(());
    };
    let injected = Lab::attach(id)?.fault(name, target)?;
    println!("{} at {}, CLOCK_BOOTTIME {} ns", injected.name, injected.target, injected.at.0);
    Ok(())
}

pub fn heal(id: &str, name: Option<String>, target: Option<String>) -> anyhow::Result<()> {
    let done: Vec<String> = Lab::attach(id)?.ask(&Request::Heal { name, target })?;
    if done.is_empty() {
        println!("nothing was broken");
    }
    for line in done {
        println!("{line}");
    }
    Ok(())
}

pub fn start(id: &str, process: &str) -> anyhow::Result<()> {
    let status = Lab::attach(id)?.start_process(process)?;
    println!("{process} runs, pid {}", status.pid);
    Ok(())
}

pub fn stop(id: &str, process: &str) -> anyhow::Result<()> {
    let status = Lab::attach(id)?.stop_process(process, Duration::from_secs(10))?;
    println!("{process} has ended: {:?}", status.exit);
    Ok(())
}

pub fn logs(id: &str, process: Option<&str>) -> anyhow::Result<()> {
    let lab = Lab::attach(id)?;
    match process {
        Some(process) => print!("{}", lab.node_log(process)?),
        None => println!("{}", lab.log_tails()),
    }
    Ok(())
}
