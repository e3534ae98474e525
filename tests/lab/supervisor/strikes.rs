//! Faults begin and end.

use super::Supervisor;
use crate::control::Injected;
use crate::faults::{Action, Fault};
use crate::sys;
use crate::topology::{Node, SWITCH};
use anyhow::{Context, bail};
use reroute_agent::clock;
use reroute_core::ids::BootNs;
use rustix::process::{Signal, pidfd_send_signal};
use std::sync::Arc;
use std::time::Duration;

impl Supervisor {
    pub(super) fn inject(self: &Arc<Self>, name: &str, target: Option<&str>) -> anyhow::Result<Injected> {
        let fault = Fault::find(name)?;
        fault.check(&self.options)?;
        let target = fault.target(target)?;
        if self.faults().iter().any(|f| f.name == name && f.target == target) {
            bail!("{name} stands at {target} already: heal it first");
        }
        let at = self.begin(fault, &target)?;
        let injected = Injected { name: name.into(), target, at };
        self.faults().push(injected.clone());
        Ok(injected)
    }

    /// Returns the time right before it is true.
    fn begin(self: &Arc<Self>, fault: &Fault, target: &str) -> anyhow::Result<BootNs> {
        Ok(match fault.action {
            Action::Kill(what) => self.processes.signal(&format!("{target}/{what}"), Signal::KILL)?,
            Action::Stop(what, resume) => {
                let process = format!("{target}/{what}");
                let handle = self.processes.handle(&process)?;
                let at = self.processes.signal(&process, Signal::STOP)?;
                if let Some(after) = resume.filter(|_| !self.options.faults_stand) {
                    let (supervisor, target) = (self.clone(), target.to_string());
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
            Action::Cut(network) => self.set_port(target, network, false)?,
            Action::Flap(network) => self.flap(target, network)?,
            Action::Restart(what) => self.restart(&format!("{target}/{what}"))?,
            Action::Freeze(time) => self.freeze(fault.name, target, time)?,
            Action::Disturb(what) => self.disturb(fault.name, target, what)?,
            Action::PowerOff { known } => self.power_off(fault.name, target, known)?,
            Action::Server { begin, .. } => self.tell_server(target, begin)?,
            Action::Wedge => self.wedge(target, "on")?,
            Action::Load(load) => self.load(fault.name, target, load)?,
            Action::StepClock(seconds) => self.step_clock(fault.name, target, seconds)?,
            Action::FillDisk => self.fill_disk(target)?,
            Action::Impersonate(network) => self.impersonate(fault.name, target, network)?,
        })
    }

    fn set_port(&self, node: &str, network: &str, up: bool) -> anyhow::Result<reroute_core::ids::BootNs> {
        let port = Node::parse(node).with_context(|| format!("no node {node:?}"))?.port(network);
        let at = self.namespace(SWITCH)?.run(|| sys::set_link(&port, up, clock::now))?;
        at.with_context(|| format!("cannot set {port}"))
    }

    pub(super) fn heal(&self, name: Option<&str>, target: Option<&str>) -> anyhow::Result<Vec<String>> {
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
            Action::PowerOff { .. } => {
                self.power_on(&fault.name, &fault.target)?;
                Ok("it has started anew".into())
            }
            Action::Server { end, .. } => {
                self.server_told(&fault.target, || self.tell_server(&fault.target, end))
            }
            Action::Wedge => self.server_told(&fault.target, || self.wedge(&fault.target, "off")),
            Action::Load(load) => {
                self.unload(&fault.name, &fault.target, load)?;
                Ok("it has ended".into())
            }
            Action::StepClock(_) => {
                self.step_clock_back(&fault.name, &fault.target)?;
                Ok("stepped back".into())
            }
            Action::FillDisk => {
                self.make_room(&fault.target)?;
                Ok("there is room".into())
            }
            Action::Impersonate(_) => {
                self.send_away(&fault.name, &fault.target)?;
                Ok("it is gone".into())
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
