//! What the kernel tells at once: into the journal, and to whom it concerns.

use super::*;

impl Scvm {
    pub(super) fn signal(&mut self, signal: Signal, now: BootNs, out: &mut Vec<Effect>) {
        self.server.signal(&signal);
        let name = match signal.kind {
            SignalKind::FirstReply(epoch) => {
                if let Some(host) = signal.host {
                    out.push(Effect::Journal { at: signal.at, event: Event::FirstReply { host, epoch } });
                }
                return;
            }
            SignalKind::Released(epoch) => {
                let released = Word::new(epoch.0, reroute_common::admission::rank::RELEASED);
                if let Some(host) = signal.host {
                    self.admission.learn(host, released);
                }
                "released"
            }
            SignalKind::LoginWanted | SignalKind::LoginWantedUnseen => {
                return self.login_wanted(&signal, now, out);
            }
            SignalKind::Unanswered => "unanswered",
            SignalKind::UnansweredEnd => "unanswered_end",
            SignalKind::Silent => "silent",
            SignalKind::SilentEnd => "silent_end",
            SignalKind::ListenerGone => "listener_gone",
            SignalKind::ListenerBack => "listener_back",
            SignalKind::Unacked => "unacked",
            SignalKind::UnackedEnd => "unacked_end",
            SignalKind::Retransmit(Way::In) => "retransmit client",
            SignalKind::Retransmit(Way::Out) => "retransmit server",
            SignalKind::RetransmitEnd(Way::In) => "retransmit_end client",
            SignalKind::RetransmitEnd(Way::Out) => "retransmit_end server",
            SignalKind::ZeroWindow(Way::In) => "zero_window client",
            SignalKind::ZeroWindow(Way::Out) => "zero_window server",
            SignalKind::ZeroWindowEnd(Way::In) => "zero_window_end client",
            SignalKind::ZeroWindowEnd(Way::Out) => "zero_window_end server",
            SignalKind::Reset(Way::In) => "reset client",
            SignalKind::Reset(Way::Out) => "reset server",
        };
        let event = Event::KernelSignal {
            signal: name.into(),
            host: signal.host,
            age_ns: signal.age_ns,
            limit_ns: signal.limit_ns,
            waiting: signal.waiting,
        };
        out.push(Effect::Journal { at: signal.at, event });
    }
}
