//! How old a client's call may grow before that is news: each client is judged by its own latency.
//!
//! From the kernel's histograms we keep, per client and for each [`SLOT_NS`], which latencies were seen and how many
//! replies there were. A latency belongs to the client if it was seen in [`RECURS`] *episodes* that lie apart:
//! a disk tier, a cache miss or a periodic flush comes back, the late replies of a stall come once. The limit is twice
//! the highest latency that belongs to the client, within the configured bounds. Why so: docs/adr/0012.

mod window;

#[cfg(test)]
mod tests;

use crate::ids::*;
use reroute_common::class;
use reroute_common::table::LATENCY_BUCKETS;
use std::collections::BTreeMap;
use window::Window;

/// What was seen is remembered by spans of this length.
const SLOT_NS: u64 = 2 * SEC;
/// Episodes begin at least this far apart.
const APART_NS: u64 = 3 * SEC;
/// So many episodes make a latency the client's own.
const RECURS: u32 = 2;
/// The window, in spans with replies: a minute of activity, so that idle times push nothing out of it.
const WHOLE: usize = 30;
/// No limit falls below the default before so many spans were seen.
const LEARNT: usize = 8;
/// Replies that the window holds on to beyond that: among so many, one call in a hundred that is slow shows for sure.
const ENOUGH: u64 = 2000;
/// What is older is forgotten, whatever is left.
const LONG_NS: u64 = 600 * SEC;
/// The limit, in terms of the upper bound of the highest latency bucket.
const FACTOR: u64 = 2;

/// Limits of the configuration, ns: `floor <= ceiling`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    pub floor_ns: u64,
    /// For clients without history.
    pub default_ns: u64,
    pub ceiling_ns: u64,
}

/// One client as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Latency {
    pub host: HostId,
    /// Replies ever, by class and log2 bucket in µs ([`reroute_common::table::Client::latency`]).
    pub replies: [[u64; LATENCY_BUCKETS]; class::COUNT],
    /// The limit in force, ns; 0: none of its own.
    pub limit_ns: u64,
}

/// Have the kernel hold `host` to this limit. There is no answer: the next [`Latency`] shows whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SetLimit {
    pub host: HostId,
    pub limit_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    seen: [u64; LATENCY_BUCKETS],
    window: Window,
    /// The limit an earlier agent had found, and since when we know it.
    adopted: Option<(u64, BootNs)>,
    limit_ns: u64,
}

/// All clients' limits. Wants to be told their latencies several times per second.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    bounds: Bounds,
    clients: BTreeMap<HostId, Client>,
}

impl Limits {
    pub fn new(bounds: Bounds) -> Limits {
        Limits { bounds, clients: BTreeMap::new() }
    }

    /// Takes in the histograms of all clients, read at `now`; gives the limits that must change. Clients that are not
    /// named any more are forgotten.
    pub fn handle(&mut self, latencies: &[Latency], now: BootNs) -> Vec<SetLimit> {
        self.clients.retain(|host, _| latencies.iter().any(|l| l.host == *host));
        latencies.iter().filter_map(|latency| self.judge(latency, now)).collect()
    }

    fn judge(&mut self, latency: &Latency, now: BootNs) -> Option<SetLimit> {
        let Bounds { floor_ns, default_ns, ceiling_ns } = self.bounds;
        let bounded = |ns: u64| ns.max(floor_ns).min(ceiling_ns);
        let total: [u64; LATENCY_BUCKETS] =
            std::array::from_fn(|b| latency.replies.iter().map(|c| c[b]).fold(0, u64::saturating_add));
        let adopted = (latency.limit_ns != 0).then_some(latency.limit_ns);
        let client = self.clients.entry(latency.host).or_insert_with(|| Client {
            seen: total,
            window: Window::default(),
            adopted: adopted.map(|ns| (ns, now)),
            limit_ns: bounded(adopted.unwrap_or(default_ns)),
        });
        if total.iter().zip(&client.seen).any(|(new, old)| new < old) {
            // Counted anew: another table, another client.
            *client = Client {
                seen: total,
                window: Window::default(),
                adopted: None,
                limit_ns: bounded(default_ns),
            };
        } else {
            let new: [u64; LATENCY_BUCKETS] = std::array::from_fn(|b| total[b] - client.seen[b]);
            client.seen = total;
            client.window.add(&new, now);
        }
        client.limit_ns = bounded(client.wanted(default_ns, now));
        let limit_ns = client.limit_ns;
        (limit_ns != latency.limit_ns).then_some(SetLimit { host: latency.host, limit_ns })
    }

    /// The limit that `host` is held to; None: never heard of.
    pub fn limit(&self, host: HostId) -> Option<u64> {
        self.clients.get(&host).map(|c| c.limit_ns)
    }
}

impl Client {
    fn wanted(&mut self, default_ns: u64, now: BootNs) -> u64 {
        self.window.forget(now);
        let (replies, spans) = (self.window.replies(), self.window.spans());
        if self.adopted.is_some_and(|(_, since)| spans >= WHOLE || now.since(since) >= LONG_NS) {
            self.adopted = None;
        }
        if replies == 0 {
            // An idle client comes back to the tier it left.
            return self.adopted.map_or(self.limit_ns.max(default_ns), |(ns, _)| ns);
        }
        let known = replies >= ENOUGH;
        // While little is known, what was seen once may come back, and counts.
        let times = if known && spans >= WHOLE { RECURS } else { 1 };
        let highest = self.window.highest(times).map_or(0, |bucket| FACTOR * upper_ns(bucket));
        let least = match self.adopted {
            Some((ns, _)) => ns,
            None if known && spans >= LEARNT => 0,
            None => default_ns,
        };
        highest.max(least)
    }
}

/// Upper bound of a bucket. The last one has none: far beyond any ceiling.
fn upper_ns(bucket: usize) -> u64 {
    1000 << (bucket + 1)
}
