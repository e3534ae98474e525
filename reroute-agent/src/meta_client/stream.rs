//! The push streams: one task per Meta address.

use super::send::root_cause;
use super::{LinkEvent, SEND_TIMEOUT, Shared, push_direction};
use crate::keys::{self, MAC_HEADER};
use futures_util::StreamExt;
use reroute_core::ids::Term;
use reroute_core::proto::{FromMeta, Order};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// Meta says Hello at least once a second: three missed ones end the stream.
const SILENCE: Duration = Duration::from_secs(3);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(1);
/// A longer line is not Meta's (a view of 1,000 hosts and SCVMs stays below).
const LINE_MOST: usize = 8 << 20;
/// Orders remembered to know their copies.
const REMEMBERED: usize = 1024;

pub(super) fn spawn(shared: Arc<Shared>, events: UnboundedSender<LinkEvent>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    for &address in &shared.addresses {
        let stream = Stream {
            shared: shared.clone(),
            seen: seen.clone(),
            events: events.clone(),
            address,
            direction: push_direction(shared.node),
        };
        tokio::spawn(stream.run());
    }
}

/// Orders already handed on, over all streams.
#[derive(Debug, Default)]
pub(super) struct Seen {
    term: Term,
    /// Sequence numbers of `term`; everything below `floor` counts as seen.
    seqs: BTreeSet<u64>,
    floor: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    New,
    Copy,
    OldTerm,
}

impl Seen {
    pub(super) fn judge(&mut self, line: &FromMeta) -> Verdict {
        if line.term < self.term {
            return Verdict::OldTerm;
        }
        if line.term > self.term {
            *self = Seen { term: line.term, ..Seen::default() };
        }
        if matches!(line.order, Order::Hello { .. } | Order::View { .. }) {
            return Verdict::New;
        }
        if line.seq < self.floor || !self.seqs.insert(line.seq) {
            return Verdict::Copy;
        }
        if self.seqs.len() > REMEMBERED
            && let Some(oldest) = self.seqs.pop_first()
        {
            self.floor = oldest + 1;
        }
        Verdict::New
    }
}

struct Stream {
    shared: Arc<Shared>,
    seen: Arc<Mutex<Seen>>,
    events: UnboundedSender<LinkEvent>,
    address: SocketAddr,
    direction: String,
}

impl Stream {
    /// Reads the stream, again and again, until nobody listens any more.
    async fn run(self) {
        let mut wait = RETRY_FIRST;
        let mut said = false;
        while !self.events.is_closed() {
            let mut up = false;
            let ended = tokio::select! {
                why = self.read(&mut up) => why,
                () = self.events.closed() => return,
            };
            if up {
                self.shared.counters.streams_up.dec();
                self.shared.counters.stream_drops.inc();
                wait = RETRY_FIRST;
            }
            if up || !said {
                tracing::warn!(address = %self.address, why = %ended, "no push stream from Meta; trying again for ever");
                let _ = self.events.send(LinkEvent::Down { address: self.address, why: ended });
                said = true;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.events.closed() => return,
            }
            wait = (wait * 2).min(RETRY_MOST);
        }
    }

    /// One connection; returns why it ended. `up` is set with its first genuine line.
    async fn read(&self, up: &mut bool) -> String {
        let url = format!("http://{}/v1/{}", self.address, self.direction);
        let mac = keys::message_mac(&self.shared.key, &self.direction, b"");
        let request = self.shared.http.get(url).header(MAC_HEADER, mac).send();
        let asked = tokio::time::timeout(SEND_TIMEOUT, request).await;
        let response = match asked {
            Ok(Ok(r)) if r.status().is_success() => r,
            Ok(Ok(r)) => return format!("answered {}", r.status()),
            Ok(Err(e)) => return root_cause(&e),
            Err(_) => return format!("no answer within {} ms", SEND_TIMEOUT.as_millis()),
        };
        let mut chunks = response.bytes_stream();
        let mut buffer: Vec<u8> = Vec::new();
        let mut greeted = false;
        // Only genuine lines keep the stream alive: noise from another hand must not.
        let mut deadline = tokio::time::Instant::now() + SILENCE;
        loop {
            let chunk = match tokio::time::timeout_at(deadline, chunks.next()).await {
                Err(_) => return format!("silent for {} s", SILENCE.as_secs()),
                Ok(None) => return "closed by Meta".into(),
                Ok(Some(Err(e))) => return root_cause(&e),
                Ok(Some(Ok(chunk))) => chunk,
            };
            let mut rest = &chunk[..];
            while let Some(end) = rest.iter().position(|b| *b == b'\n') {
                buffer.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                match self.line(&buffer, up, &mut greeted) {
                    Ok(true) => deadline = tokio::time::Instant::now() + SILENCE,
                    Ok(false) => {}
                    Err(why) => return why,
                }
                buffer.clear();
            }
            buffer.extend_from_slice(rest);
            if buffer.len() > LINE_MOST {
                self.shared.counters.malformed.inc();
                return format!("sent a line of more than {LINE_MOST} bytes");
            }
        }
    }

    /// Takes one line in; false if it is not genuine. `Err`: this is not our Meta.
    fn line(&self, line: &[u8], up: &mut bool, greeted: &mut bool) -> Result<bool, String> {
        let counters = &self.shared.counters;
        let split = line.iter().position(|b| *b == b' ');
        let parts = split.and_then(|at| Some((std::str::from_utf8(&line[..at]).ok()?, &line[at + 1..])));
        let Some((mac, json)) = parts else {
            counters.malformed.inc();
            return Ok(false);
        };
        if !keys::message_is_genuine(&self.shared.key, &self.direction, json, mac) {
            counters.bad_mac.inc();
            tracing::warn!(address = %self.address, "a line on the push stream is not signed with our key; dropped");
            return Ok(false);
        }
        let order: FromMeta = match serde_json::from_slice(json) {
            Ok(order) => order,
            Err(error) => {
                counters.malformed.inc();
                tracing::warn!(address = %self.address, %error, "a line on the push stream cannot be read; dropped");
                return Ok(false);
            }
        };
        if let Order::Hello { cluster } = &order.order {
            self.greets(order.term, cluster, *greeted)?;
            *greeted = true;
        } else if !*greeted {
            return Err(
                "its stream does not begin with a greeting: install the same release everywhere".into()
            );
        }
        let verdict = self.seen.lock().unwrap_or_else(PoisonError::into_inner).judge(&order);
        if verdict != Verdict::OldTerm && !*up {
            *up = true;
            counters.streams_up.inc();
            let _ = self.events.send(LinkEvent::Up { address: self.address });
        }
        match verdict {
            Verdict::New => {
                counters.orders.inc();
                let _ = self.events.send(LinkEvent::Order(order));
            }
            Verdict::Copy => {
                counters.copies.inc();
            }
            Verdict::OldTerm => {
                counters.old_term.inc();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whose stream it is. Once it has been ours, a later leader's start is no reason to end it: its lines are dropped.
    fn greets(&self, term: Term, cluster: &str, greeted: bool) -> Result<(), String> {
        let ours = &self.shared.cluster;
        if greeted && cluster == ours {
            return Ok(());
        }
        self.shared.ours.greets(self.address, term, cluster, ours).map_err(|(why, news)| {
            if news {
                let _ = self.events.send(LinkEvent::Stranger { address: self.address, why: why.clone() });
            }
            why
        })
    }
}
