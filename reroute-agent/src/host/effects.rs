//! What the machine wants done, and what became of it.

use super::driver::Driver;
use super::kernel::Reset;
use super::{hypervisor, notes, persist, pulse};
use crate::sweep::{own, sizes};
use crate::{clock, fault_point};
use reroute_core::host::{Effect, Found, Input};
use reroute_core::ids::*;
use reroute_core::proto::{EvidenceKind, ToMeta};
use reroute_core::timeline::Event;
use std::io;

impl Driver {
    pub(super) fn carry_out(&mut self, effect: Effect) {
        let step = fault_point::of_host(&effect);
        fault_point::before(step);
        match effect {
            Effect::SendPulse { path, flag, epoch, scvm_boot, scvm_stamp, due } => {
                let sent = self.pulses.send(path, pulse::Request { flag, epoch, scvm_boot, scvm_stamp });
                self.metrics.pulse_sent(path, sent.is_ok());
                let (at, error) = match sent {
                    Ok(at) => (at, None),
                    // A full queue of our own is no evidence about anybody.
                    Err(error) if is_transient(&error) => return,
                    Err(error) => (clock::now(), Some(error.to_string())),
                };
                self.inputs.push_back(Input::Sent { path, due, at, error });
            }
            Effect::Meta(message) => return self.tell_meta(message, step),
            Effect::ReadRoute => {
                let found = self.kernel.read_route();
                self.found = found.clone().ok();
                self.inputs.push_back(Input::RouteRead(found));
            }
            Effect::ReplaceRoute { path, adopt } => {
                let result = self.kernel.replace_route(path, adopt);
                if result.is_ok() {
                    self.found = Some(Found::Ours(path));
                }
                self.inputs.push_front(Input::RouteSet { path, result });
            }
            Effect::DestroySockets { keep } => {
                self.inputs.push_front(match self.kernel.destroy_sockets(keep) {
                    Ok(Reset::Destroyed(count)) => Input::SocketsReset(Ok(count)),
                    Ok(Reset::Stay(sockets)) => Input::SocketsStay(sockets),
                    Err(why) => Input::SocketsReset(Err(why)),
                });
            }
            Effect::FindSockets => {
                self.inputs.push_back(Input::SocketsFound(self.kernel.find_sockets()));
            }
            Effect::Persist(record) => {
                let (dir, results) = (self.parts.host.state_dir.clone(), self.results.clone());
                let cluster = self.parts.config.cluster.id.clone();
                tokio::spawn(async move {
                    let written =
                        tokio::task::spawn_blocking(move || persist::store(&dir, &cluster, &record)).await;
                    fault_point::after(step);
                    let result = match written {
                        Ok(result) => result.map_err(|error| error.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    let _ = results.send(Input::Persisted { record, result });
                });
                return;
            }
            Effect::PersistNotes(notes) => {
                let (dir, boot) = (self.parts.host.state_dir.clone(), self.parts.boot);
                let cluster = self.parts.config.cluster.id.clone();
                self.aside(move || {
                    let result =
                        notes::store(&dir, &cluster, &notes, boot).map_err(|error| error.to_string());
                    Input::NotesPersisted { notes, result }
                });
            }
            Effect::AskOwnAddress => {
                let interface = self.parts.host.interfaces.storage.clone();
                let address = self.parts.node.address(Network::Storage);
                self.aside(move || Input::OwnAddress(own::claims(&interface, address)));
            }
            Effect::TrySizes(paths) => {
                let cluster = self.parts.config.cluster.clone();
                let interfaces = self.parts.host.interfaces.clone();
                self.aside(move || Input::SizesTried(sizes::try_all(&cluster, &interfaces, &paths)));
            }
            Effect::AskHypervisor => {
                let Some(hypervisor) = self.parts.host.hypervisor.clone() else { return };
                let began = clock::now();
                self.aside(move || Input::Hypervisor { began, result: hypervisor::domains(&hypervisor) });
            }
            Effect::Journal(event) => {
                if let Event::Verdict { evidence, reason, .. } = &event {
                    self.metrics.moved(cause(evidence.first().map(|e| e.kind), reason));
                }
                if let Event::Fault { what } = &event {
                    tracing::warn!(what, "fault");
                }
                self.parts.journal.record(event);
            }
        }
        fault_point::after(step);
    }

    /// Something that blocks, on a thread where that harms nobody; its result comes back as an input.
    fn aside(&self, work: impl FnOnce() -> Input + Send + 'static) {
        let results = self.results.clone();
        tokio::task::spawn_blocking(move || {
            let _ = results.send(work());
        });
    }

    fn tell_meta(&self, message: ToMeta, step: Option<&'static str>) {
        let (meta, results) = (self.meta.clone(), self.results.clone());
        tokio::spawn(async move {
            let result = meta.send(message.clone()).await.map_err(|error| error.to_string());
            fault_point::after(step);
            let _ = results.send(Input::MetaAnswer { message, result });
        });
    }
}

/// The own stack is full for a moment, or the socket is not ready.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Bounded names for the metric; the journal has the whole story.
fn cause(evidence: Option<EvidenceKind>, reason: &str) -> &'static str {
    match evidence {
        Some(EvidenceKind::ListenerGone) => "listener_gone",
        Some(EvidenceKind::ProcessExit) => "process_exit",
        Some(EvidenceKind::Silent | EvidenceKind::NullFailed) => "hung",
        Some(EvidenceKind::DataSilent) => "storage_hung",
        Some(EvidenceKind::PathLost) => "path_lost",
        Some(EvidenceKind::AllPathsLost) => "all_paths_lost",
        Some(EvidenceKind::CarrierLost) => "carrier_lost",
        Some(EvidenceKind::KeepaliveLost) => "keepalive_lost",
        Some(EvidenceKind::Operator) => "operator",
        None if reason == "first login" => "first_login",
        None => "better_place",
    }
}
