//! Answers on the control socket.

use super::Supervisor;
use crate::control::{Injected, Reply, Request, Spec};
use crate::faults::{Action, Fault};
use crate::sys;
use crate::topology::{Node, SWITCH};
use anyhow::{Context, bail};
use reroute_agent::clock;
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, to_value};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Serves `socket` from now on, a thread per connection.
pub fn listen(supervisor: Arc<Supervisor>, socket: &Path) -> anyhow::Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            let supervisor = supervisor.clone();
            let _ = std::thread::Builder::new().name("request".into()).spawn(move || {
                let _ = serve(&supervisor, stream);
            });
        }
    })?;
    Ok(())
}

fn serve(supervisor: &Arc<Supervisor>, mut stream: UnixStream) -> anyhow::Result<()> {
    for line in BufReader::new(stream.try_clone()?).lines() {
        let request = serde_json::from_str(&line?);
        let down = matches!(request, Ok(Request::Down));
        let reply = match request.map_err(Into::into).and_then(|r| supervisor.answer(r)) {
            Ok(value) => Reply::Ok(value),
            Err(error) => Reply::Error(format!("{error:#}")),
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        stream.write_all(text.as_bytes())?;
        if down {
            let _ = supervisor.end.send(());
        }
    }
    Ok(())
}

impl Supervisor {
    fn answer(self: &Arc<Self>, request: Request) -> anyhow::Result<Value> {
        Ok(match request {
            Request::Status => to_value(self.status())?,
            Request::Fault { name, target } => to_value(self.inject(&name, target.as_deref())?)?,
            Request::Heal { name, target } => to_value(self.heal(name.as_deref(), target.as_deref())?)?,
            Request::Run { spec } => to_value(self.run(spec)?)?,
            Request::Start { process, env } => {
                let mut spec = self.processes.spec(&process)?;
                spec.env.extend(env);
                to_value(self.run(spec)?)?
            }
            Request::Signal { process, signal } => {
                let signal = Signal::from_named_raw(signal).with_context(|| format!("no signal {signal}"))?;
                to_value(self.processes.signal(&process, signal)?)?
            }
            Request::Wait { process, within_ms } => {
                to_value(self.processes.wait(&process, Duration::from_millis(within_ms))?)?
            }
            Request::Down => Value::Null,
        })
    }

    pub(super) fn run(&self, spec: Spec) -> anyhow::Result<crate::control::ProcessStatus> {
        let ns = self.namespace(spec.node())?;
        self.processes.start(spec, ns, &self.root)
    }

    fn inject(self: &Arc<Self>, name: &str, target: Option<&str>) -> anyhow::Result<Injected> {
        let fault = Fault::find(name)?;
        let target = fault.target(target)?;
        if self.faults().iter().any(|f| f.name == name && f.target == target) {
            bail!("{name} stands at {target} already: heal it first");
        }
        let at = match fault.action {
            Action::Kill(what) => self.processes.signal(&format!("{target}/{what}"), Signal::KILL)?,
            Action::Stop(what, resume) => {
                let process = format!("{target}/{what}");
                let handle = self.processes.handle(&process)?;
                let at = self.processes.signal(&process, Signal::STOP)?;
                if let Some(after) = resume {
                    let (supervisor, target) = (self.clone(), target.clone());
                    std::thread::Builder::new().name("resume".into()).spawn(move || {
                        std::thread::sleep(after);
                        // Unless it was healed, and perhaps stopped again, meanwhile.
                        if supervisor.faults().iter().any(|f| f.target == target && f.at == at) {
                            // By pidfd: if it was killed meanwhile, nobody gets this.
                            let _ = pidfd_send_signal(&*handle, Signal::CONT);
                        }
                    })?;
                }
                at
            }
            Action::Cut(network) => self.set_port(&target, network, false)?,
            Action::Flap(network) => self.flap(&target, network)?,
            Action::Restart(what) => self.restart(&format!("{target}/{what}"))?,
            Action::Freeze(time) => self.freeze(name, &target, time)?,
            Action::Disturb(what) => self.disturb(name, &target, what)?,
        };
        let injected = Injected { name: name.into(), target, at };
        self.faults().push(injected.clone());
        Ok(injected)
    }

    fn set_port(&self, node: &str, network: &str, up: bool) -> anyhow::Result<reroute_core::ids::BootNs> {
        let port = Node::parse(node).with_context(|| format!("no node {node:?}"))?.port(network);
        let at = self.namespace(SWITCH)?.run(|| sys::set_link(&port, up, clock::now))?;
        at.with_context(|| format!("cannot set {port}"))
    }

    fn heal(&self, name: Option<&str>, target: Option<&str>) -> anyhow::Result<Vec<String>> {
        if let Some(name) = name {
            Fault::find(name)?;
        }
        let (due, stay) = self
            .faults()
            .drain(..)
            .partition(|f| name.is_none_or(|n| n == f.name) && target.is_none_or(|t| t == f.target));
        *self.faults() = stay;
        let mut done = Vec::new();
        for fault in due as Vec<Injected> {
            match self.mend(&fault) {
                Ok(text) => done.push(format!("{} at {}: {text}", fault.name, fault.target)),
                Err(error) => {
                    let error = error.context(format!("cannot heal {} at {}", fault.name, fault.target));
                    self.faults().push(fault);
                    return Err(error);
                }
            }
        }
        done.extend(self.restart_servers()?);
        Ok(done)
    }

    /// Starts again, as a service manager would, every server that ended and that no standing fault keeps down:
    /// policy `kill` may have ended it after any fault.
    fn restart_servers(&self) -> anyhow::Result<Vec<String>> {
        let mut done = Vec::new();
        for node in Node::all().into_iter().filter(|n| matches!(n, Node::Scvm(_))).map(|n| n.to_string()) {
            let process = format!("{node}/server");
            let faulty = self.faults().iter().any(|f| f.target == node);
            if !faulty && !self.processes.status(&process)?.runs() {
                let status = self.run(self.processes.spec(&process)?)?;
                done.push(format!("{process} had ended: started again, pid {}", status.pid));
            }
        }
        Ok(done)
    }

    fn mend(&self, fault: &Injected) -> anyhow::Result<String> {
        match Fault::find(&fault.name)?.action {
            Action::Cut(network) => {
                self.set_port(&fault.target, network, true)?;
                Ok("link up".into())
            }
            Action::Flap(_) => Ok("it was up again already".into()),
            Action::Restart(what) => {
                let process = format!("{}/{what}", fault.target);
                if !self.processes.status(&process)?.runs() {
                    self.run(self.processes.spec(&process)?)?;
                }
                Ok("it runs".into())
            }
            Action::Freeze(_) => {
                self.thaw(&fault.name, &fault.target);
                Ok("it goes on".into())
            }
            Action::Disturb(_) => {
                self.pass(&fault.name, &fault.target);
                Ok("frames pass".into())
            }
            Action::Kill(what) | Action::Stop(what, _) => {
                let process = format!("{}/{what}", fault.target);
                // A killed process may take a moment to be reaped.
                let ended = match Fault::find(&fault.name)?.action {
                    Action::Kill(_) => Some(self.processes.wait(&process, Duration::from_secs(2))),
                    _ => None,
                };
                if self.processes.status(&process)?.runs() {
                    if ended.is_some() {
                        // Another healing has started it meanwhile.
                        return Ok("runs again already".into());
                    }
                    if self.processes.signal(&process, Signal::CONT).is_ok() {
                        return Ok("continued".into());
                    }
                    // Policy `kill` ended it at this very moment.
                    self.processes.wait(&process, Duration::from_secs(2))?;
                }
                let status = self.run(self.processes.spec(&process)?)?;
                Ok(format!("started again, pid {}", status.pid))
            }
        }
    }
}
