//! What the agents say: status, health, journals.

use super::{Lab, binary, wait_for};
use crate::options::Options;
use crate::topology::{METRICS_PORT, Node, PAIRS, SERVICE};
use anyhow::{Context, bail};
use reroute_core::ids::{Epoch, Network, Path, ScvmId};
use reroute_core::proto::{ClusterView, Health, LoginState, SessionState};
use reroute_core::timeline::Entry;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

impl Lab {
    /// `reroute-agent ARGS --socket (that node's)`, as an operator on the node would run it.
    pub fn agent(&self, node: &str, args: &[&str]) -> anyhow::Result<std::process::Output> {
        let socket = self.root().join(node).join("agent.sock");
        Command::new(binary("reroute-agent")?)
            .args(args)
            .arg("--socket")
            .arg(socket)
            .output()
            .context("cannot run reroute-agent")
    }

    /// `reroute-agent status --output json` of a node.
    pub fn agent_status(&self, node: &str) -> anyhow::Result<serde_json::Value> {
        let out = self.agent(node, &["status", "--output", "json"])?;
        if !out.status.success() {
            bail!("status of {node}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        serde_json::from_slice(&out.stdout).with_context(|| format!("status of {node} is no JSON"))
    }

    /// What a node's agent serves on `/metrics`.
    pub fn metrics(&self, node: &str) -> anyhow::Result<String> {
        let address = Node::parse(node).with_context(|| format!("no node {node:?}"))?.management();
        let ask = || -> anyhow::Result<String> {
            let mut stream = TcpStream::connect((address, METRICS_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.namespace(node)?.run(ask)?
    }

    /// An operator wants `host` at `scvm`, or (None) where its policy puts it. Returns when it is asked for.
    fn want(&self, host: u32, scvm: Option<u32>) -> anyhow::Result<()> {
        let (host, scvm) = (Node::Host(host).to_string(), scvm.map(|i| Node::Scvm(i).to_string()));
        let args = scvm.as_ref().map_or(vec!["route", "auto"], |scvm| vec!["route", "set", scvm]);
        let out = self.agent(&host, &args)?;
        if !out.status.success() {
            bail!("{} on {host}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// Has `host` served by `scvm` until [`Lab::unpin`]. Returns when it is, by the storage network.
    pub fn pin(&self, host: u32, scvm: u32, within: Duration) -> anyhow::Result<()> {
        self.want(host, Some(scvm))?;
        let due = Node::Scvm(scvm).storage().to_string();
        wait_for("the host at the SCVM that is wanted", within, || {
            let (login, hop) = (self.login(host)?, self.next_hop(host)?);
            if login.is_none_or(|(at, _)| at != ScvmId(scvm)) || hop.as_deref() != Some(due.as_str()) {
                bail!(
                    "host{host} is logged in at {login:?} and routes by {hop:?}, not at scvm{scvm} by {due}"
                );
            }
            Ok(())
        })
        .map_err(|e| self.explain(e))
    }

    pub fn unpin(&self, host: u32) -> anyhow::Result<()> {
        self.want(host, None)
    }

    /// What `reroute-agent status` prints on a node.
    pub fn status_text(&self, node: &str) -> anyhow::Result<String> {
        let out = self.agent(node, &["status"])?;
        if !out.status.success() {
            bail!("status of {node}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// The cluster as Meta sees it.
    pub fn view(&self) -> anyhow::Result<ClusterView> {
        let status = self.agent_status("meta")?;
        serde_json::from_value(status["view"].clone()).context("Meta's status holds no view")
    }

    /// Where Meta has a host logged in, and at which epoch; None while it moves or was never logged in.
    pub fn login(&self, host: u32) -> anyhow::Result<Option<(ScvmId, Epoch)>> {
        let logins = self.view()?.logins;
        Ok(logins.iter().find(|l| l.login.host.0 == host).and_then(|l| match l.login.state {
            LoginState::At { scvm, epoch, .. } => Some((scvm, epoch)),
            LoginState::Moving { .. } | LoginState::Evicted { .. } => None,
        }))
    }

    /// Next hop of the kernel's route to the service address on a host; None: on link, by the private network.
    pub fn next_hop(&self, host: u32) -> anyhow::Result<Option<String>> {
        let out =
            self.exec(&Node::Host(host).to_string(), &["ip", "-json", "route", "get", &SERVICE.to_string()])?;
        let routes: serde_json::Value = serde_json::from_slice(&out.stdout).with_context(|| {
            format!("ip route get on host{host}: {}", String::from_utf8_lossy(&out.stderr).trim())
        })?;
        Ok(routes[0]["gateway"].as_str().map(str::to_string))
    }

    /// Sets the route of a host without an agent to the service address by an SCVM's storage address, as one who
    /// drives an ESXi host over ssh would.
    pub fn drive(&self, host: u32, scvm: u32) -> anyhow::Result<()> {
        let (to, via) = (format!("{SERVICE}/32"), Node::Scvm(scvm).storage().to_string());
        let out = self.exec(&Node::Host(host).to_string(), &["ip", "route", "replace", &to, "via", &via])?;
        if !out.status.success() {
            bail!("ip route replace on host{host}: {}", String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// Every session alive and well, every host that has an agent logged in at its own SCVM, routed there by storage in its kernel,
    /// every storage path healthy.
    pub fn wait_healthy(&self, within: Duration) -> anyhow::Result<()> {
        let checked = wait_for("a healthy lab", within, || {
            unhealthy(&self.view()?, self.options()).map_or(Ok(()), |why| bail!("{why}"))?;
            for i in (1..=PAIRS).filter(|i| !self.options().agentless.contains(i)) {
                let (found, due) = (self.next_hop(i)?, Node::Scvm(i).storage().to_string());
                if found.as_deref() != Some(due.as_str()) {
                    bail!("host{i} routes by {found:?}, not by {due}");
                }
            }
            Ok(())
        });
        checked.map_err(|e| self.explain(e))
    }

    /// Waits until Meta's view passes `check`, which says what is still missing.
    pub fn wait_view(
        &self,
        what: &str,
        within: Duration,
        mut check: impl FnMut(&ClusterView) -> Option<String>,
    ) -> anyhow::Result<ClusterView> {
        wait_for(what, within, || {
            let view = self.view()?;
            check(&view).map_or(Ok(view), |why| bail!("{why}"))
        })
        .map_err(|e| self.explain(e))
    }

    /// Journals of all nodes, by time (one kernel: one clock).
    pub fn journal(&self) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for node in Node::all() {
            let path = self.root().join(node.to_string()).join("state/journal.jsonl");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            // The last line may be half written.
            let complete = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in complete.lines() {
                let entry =
                    serde_json::from_str(line).with_context(|| format!("journal of {node}: {line}"))?;
                entries.push(entry);
            }
        }
        entries.sort_by_key(|e: &Entry| e.at);
        Ok(entries)
    }

    /// The same as raw JSON lines with the node they come from.
    pub fn node_log(&self, process: &str) -> anyhow::Result<String> {
        let (node, what) = process.split_once('/').context("node/what")?;
        Ok(std::fs::read_to_string(self.root().join(node).join("log").join(format!("{what}.log")))?)
    }
}

/// The value of the first sample of a text of metrics whose line starts with `name` and contains all of `labels`.
pub fn sample(text: &str, name: &str, labels: &[&str]) -> Option<f64> {
    text.lines()
        .filter(|l| l.starts_with(name) && labels.iter().all(|x| l.contains(x)))
        .find_map(|l| l.rsplit(' ').next()?.parse().ok())
}

/// What keeps the lab from being healthy.
fn unhealthy(view: &ClusterView, options: &Options) -> Option<String> {
    for i in 1..=PAIRS {
        let Some(s) = view.sessions.iter().find(|s| s.scvm == ScvmId(i)) else {
            return Some(format!("scvm{i} has no session"));
        };
        let h = &s.health;
        if s.state != SessionState::Alive
            || !h.listening
            || !h.process_alive
            || h.stalled
            || h.null_failed
            || !h.no_carrier.is_empty()
        {
            return Some(format!("scvm{i}: {:?} {} {h:?}", s.state, s.reason));
        }
        if options.agentless.contains(&i) {
            continue;
        }
        let at_home = view.logins.iter().any(|l| {
            l.login.host.0 == i && matches!(l.login.state, LoginState::At { scvm, .. } if scvm == ScvmId(i))
        });
        if !at_home {
            return Some(format!("host{i} is not logged in at scvm{i}: {:?}", view.logins));
        }
        let report = view.hosts.iter().find(|h| h.host.0 == i).and_then(|h| h.report.as_ref());
        let Some(report) = report else { return Some(format!("host{i} has not reported")) };
        let home = Path { scvm: ScvmId(i), network: Network::Storage };
        if report.path != Some(home) || report.error.is_some() {
            return Some(format!("host{i} is at {:?}, not at home: {:?}", report.path, report.error));
        }
        let sick =
            report.paths.iter().find(|p| p.path.network == Network::Storage && p.state != Health::Healthy);
        if let Some(path) = sick {
            return Some(format!("host{i} finds {} {:?}", path.path, path.state));
        }
    }
    None
}
