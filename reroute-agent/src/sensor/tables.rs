//! The maps as userspace sees them. Configuration and registrations are written here, field by field; all else is
//! only read.

use super::load::{take_array, take_map};
use super::raw::View;
use super::{Registration, SensorError, Settings};
use crate::clock;
use crate::config::{AdmissionMode, interface_index, map_address, ns};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use reroute_common::class;
use reroute_common::flow::{Flow, MAX_FLOWS, state};
use reroute_common::pulse;
use reroute_common::table::{
    AddressKey, Client, Config, Interface, MAX_CLIENTS, MAX_INTERFACES, Server, mode, pin,
};
use reroute_core::ids::{BootNs, HostId, Network};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

/// The timer looks at calls that wait at least this often, ns.
const LOOK_AGAIN: u64 = 25_000_000;

/// Times that sums are read until no line moved meanwhile.
const SUM_TRIES: u32 = 16;

pub(super) struct Tables {
    config: View<Config>,
    clients: View<Client>,
    flows: View<Flow>,
    server: View<Server>,
    addresses: HashMap<MapData, AddressKey, u32>,
    /// Slot of each host, as long as the maps live.
    slots: BTreeMap<HostId, u32>,
}

/// The number maps carry for a network.
fn number(network: Network) -> u32 {
    match network {
        Network::Private => reroute_common::network::PRIVATE,
        Network::Storage => reroute_common::network::STORAGE,
        Network::Management => reroute_common::network::MANAGEMENT,
    }
}

/// Says which network each interface belongs to.
fn interfaces(named: &[(Network, String)]) -> Result<[Interface; MAX_INTERFACES], SensorError> {
    let mut entries = [Interface { index: 0, network: 0 }; MAX_INTERFACES];
    if named.len() > MAX_INTERFACES {
        return Err(SensorError::TooManyInterfaces { max: MAX_INTERFACES });
    }
    for (entry, (network, name)) in entries.iter_mut().zip(named) {
        let index = interface_index(name).ok_or_else(|| SensorError::Attach {
            interface: name.clone(),
            why: "there is no such interface in this network namespace: see `ip link`".into(),
        })?;
        *entry = Interface { index, network: number(*network) };
    }
    Ok(entries)
}

impl Tables {
    pub fn open(bpf: &mut Ebpf) -> Result<Tables, SensorError> {
        fn view<T: aya::Pod>(
            bpf: &mut Ebpf,
            name: &'static str,
            entries: u32,
        ) -> Result<View<T>, SensorError> {
            View::open(&take_array(bpf, name)?, entries)
                .map_err(|source| SensorError::Io { what: "mapping a BPF map into memory", source })
        }
        Ok(Tables {
            config: view(bpf, pin::CONFIG, 1)?,
            clients: view(bpf, pin::CLIENTS, MAX_CLIENTS)?,
            flows: view(bpf, pin::FLOWS, MAX_FLOWS)?,
            server: view(bpf, pin::SERVER, 1)?,
            addresses: HashMap::try_from(take_map(bpf, pin::ADDRESSES)?)
                .map_err(|source| SensorError::Map { name: pin::ADDRESSES, source })?,
            slots: BTreeMap::new(),
        })
    }

    /// Writes the configuration. A bypass that an operator has set stands until it is lifted.
    pub fn configure(&self, settings: &Settings) -> Result<(), SensorError> {
        let now = self.config()?;
        let timing = &settings.timing;
        let config = Config {
            mode: match (now.mode, settings.mode) {
                (mode::BYPASS, _) => mode::BYPASS,
                (_, AdmissionMode::Enforce) => mode::ENFORCE,
                (_, AdmissionMode::Shadow) => mode::SHADOW,
            },
            scvm: settings.scvm.0,
            scvm_boot: settings.scvm_boot,
            service_address: map_address(settings.service.ip()),
            service_port: settings.service.port().into(),
            pulse_port: pulse::PORT.into(),
            unanswered_limit_ns: ns(timing.unanswered_ms),
            unacked_limit_ns: ns(timing.unacked_ms),
            look_again_ns: self.look_again([ns(timing.unanswered_ms), ns(timing.unacked_ms)]),
            affirm_ns: ns(timing.affirm_ms),
            shield_ns: ns(timing.shield_ms),
            timer_period_ns: timing.timer_us * 1000,
            agent_seen_at: clock::now().0,
            agent_state: now.agent_state,
            registered: now.registered,
            interfaces: interfaces(&settings.interfaces)?,
        };
        for (i, word) in super::raw::bytes_of(&config).as_chunks::<8>().0.iter().enumerate() {
            if let Some(long) = self.config.long(0, i * 8) {
                long.store(u64::from_ne_bytes(*word), Relaxed);
            }
        }
        Ok(())
    }

    /// Gives each host its slot: the one it has, else a free one. Slots of hosts no longer named stay as they are, but no
    /// address leads there any more: whoever has one now is somebody else.
    pub fn register(&mut self, clients: &[Registration]) -> Result<(), SensorError> {
        let host_offset = offset_of!(Client, host);
        for slot in 1..MAX_CLIENTS {
            if let Some(host) = self.clients.word(slot, host_offset).map(|h| h.load(Relaxed))
                && host != 0
            {
                self.slots.insert(HostId(host), slot);
            }
        }
        let mut named = BTreeSet::new();
        for client in clients {
            let slot = match self.slots.get(&client.host) {
                Some(slot) => *slot,
                None => self.free_slot()?,
            };
            let word =
                |offset| self.clients.word(slot, offset).ok_or(SensorError::NoMap { name: pin::CLIENTS });
            let long =
                |offset| self.clients.long(slot, offset).ok_or(SensorError::NoMap { name: pin::CLIENTS });
            word(offset_of!(Client, has_agent))?.store(client.has_agent.into(), Relaxed);
            long(offset_of!(Client, pulse_key))?.store(client.pulse_key[0], Relaxed);
            long(offset_of!(Client, pulse_key) + 8)?.store(client.pulse_key[1], Relaxed);
            word(host_offset)?.store(client.host.0, SeqCst);
            self.slots.insert(client.host, slot);
            for (network, address) in &client.addresses {
                let (network, address) = (*network, *address);
                let key = AddressKey { network: number(network), address: map_address(address) };
                named.insert((key.network, key.address));
                self.addresses
                    .insert(key, slot, 0)
                    .map_err(|source| SensorError::Map { name: pin::ADDRESSES, source })?;
            }
        }
        let known: Vec<AddressKey> = self
            .addresses
            .keys()
            .collect::<Result<_, _>>()
            .map_err(|source| SensorError::Map { name: pin::ADDRESSES, source })?;
        for key in known.iter().filter(|key| !named.contains(&(key.network, key.address))) {
            self.addresses.remove(key).map_err(|source| SensorError::Map { name: pin::ADDRESSES, source })?;
        }
        // After the addresses: connections that stand in the table are told by them anew.
        if let Some(word) = self.config.word(0, offset_of!(Config, registered)) {
            word.fetch_add(1, SeqCst);
        }
        Ok(())
    }

    fn free_slot(&self) -> Result<u32, SensorError> {
        (1..MAX_CLIENTS)
            .find(|slot| !self.slots.values().any(|taken| taken == slot))
            .ok_or(SensorError::TooManyHosts { max: MAX_CLIENTS - 1 })
    }

    pub fn slot(&self, host: HostId) -> Result<u32, SensorError> {
        self.slots.get(&host).copied().ok_or(SensorError::UnknownHost { host })
    }
    pub fn host(&self, slot: u32) -> Option<HostId> {
        self.slots.iter().find(|(_, s)| **s == slot).map(|(host, _)| *host)
    }

    pub fn set_mode(&self, mode: u32) {
        if let Some(word) = self.config.word(0, offset_of!(Config, mode)) {
            word.store(mode, SeqCst);
        }
    }
    pub fn set_agent_state(&self, bits: u32) {
        if let Some(word) = self.config.word(0, offset_of!(Config, agent_state)) {
            word.store(bits, Relaxed);
        }
    }
    pub fn set_unanswered_limit(&self, host: HostId, ns: u64) -> Result<(), SensorError> {
        let offset = offset_of!(Client, unanswered_limit_ns);
        let limit = self.clients.long(self.slot(host)?, offset);
        let limit = limit.ok_or(SensorError::NoMap { name: pin::CLIENTS })?;
        let again = self.config.long(0, offset_of!(Config, look_again_ns));
        let again = again.ok_or(SensorError::NoMap { name: pin::CONFIG })?;
        // A shorter limit holds once the timer looks often enough.
        again.fetch_min(ns, Relaxed);
        limit.store(ns, Relaxed);
        let config = self.config()?;
        again.store(self.look_again([config.unanswered_limit_ns, config.unacked_limit_ns]), Relaxed);
        Ok(())
    }
    pub fn set_block(&self, host: HostId, until: u64) -> Result<(), SensorError> {
        let end = self.clients.long(self.slot(host)?, offset_of!(Client, blocked_until));
        end.ok_or(SensorError::NoMap { name: pin::CLIENTS })?.store(until, SeqCst);
        Ok(())
    }
    pub fn last_packets(&self) -> BTreeMap<HostId, BootNs> {
        let mut last = BTreeMap::new();
        for line in 0..MAX_FLOWS {
            let word = |offset| self.flows.word(line, offset).map(|w| w.load(Relaxed));
            if !matches!(word(offset_of!(Flow, state)), Some(state::OPEN | state::CLOSED)) {
                continue;
            }
            let at = self.flows.long(line, offset_of!(Flow, last_at)).map(|at| at.load(Relaxed));
            let (Some(at), Some(slot)) = (at, word(offset_of!(Flow, client))) else { continue };
            let newest: &mut u64 = last.entry(slot).or_default();
            *newest = at.max(*newest);
        }
        let host = |(slot, at): (u32, u64)| Some((self.host(slot)?, BootNs(at)));
        last.into_iter().filter_map(host).collect()
    }
    /// How often the timer is to look: no less than any limit, so that what comes in between two looks is seen in time.
    fn look_again(&self, general: [u64; 2]) -> u64 {
        let of_clients = (0..MAX_CLIENTS)
            .filter_map(|slot| self.clients.long(slot, offset_of!(Client, unanswered_limit_ns)))
            .map(|limit| limit.load(Relaxed))
            .filter(|limit| *limit != 0);
        of_clients.chain(general).fold(LOOK_AGAIN, u64::min)
    }
    pub fn touch(&self, now: u64) {
        if let Some(long) = self.config.long(0, offset_of!(Config, agent_seen_at)) {
            long.store(now, Relaxed);
        }
    }

    pub fn config(&self) -> Result<Config, SensorError> {
        self.config.read(0).ok_or(SensorError::NoMap { name: pin::CONFIG })
    }
    pub fn server(&self) -> Result<Server, SensorError> {
        self.server.read(0).ok_or(SensorError::NoMap { name: pin::SERVER })
    }
    pub fn waiting(&self) -> (bool, u64) {
        let calls = offset_of!(Client, in_progress);
        let waits = |slot: &u32| self.clients.word(*slot, calls).is_some_and(|n| n.load(Relaxed) > 0);
        let reply = self.server.long(0, offset_of!(Server, last_reply_at));
        (self.slots.values().any(waits), reply.map_or(0, |at| at.load(Relaxed)))
    }
    /// The clients' totals: their own counts, and those of their lines.
    pub fn clients(&self) -> Result<Vec<Client>, SensorError> {
        // Counts on their way from a line to its client are in neither, or in both: then it is read again.
        for _ in 0..SUM_TRIES {
            let ended = self.sums(offset_of!(Server, sums_ended));
            let begun = self.sums(offset_of!(Server, sums_begun));
            let clients = self.sum()?;
            if begun == ended && self.sums(offset_of!(Server, sums_begun)) == begun {
                return Ok(clients);
            }
        }
        self.sum()
    }

    fn sums(&self, offset: usize) -> u64 {
        self.server.long(0, offset).map_or(0, |n| n.load(SeqCst))
    }

    /// The clients' own counts: those of their open lines are not in them.
    pub fn logins(&self) -> Result<Vec<Client>, SensorError> {
        let read = |slot: &u32| self.clients.read(*slot).ok_or(SensorError::NoMap { name: pin::CLIENTS });
        self.slots.values().map(read).collect()
    }

    fn sum(&self) -> Result<Vec<Client>, SensorError> {
        let mut slots: Vec<u32> = self.slots.values().copied().collect();
        slots.sort_unstable();
        let slots = std::iter::once(0).chain(slots);
        let read = |slot| {
            self.clients.read(slot).map(|c| (slot, c)).ok_or(SensorError::NoMap { name: pin::CLIENTS })
        };
        let mut clients = slots.map(read).collect::<Result<BTreeMap<u32, Client>, _>>()?;
        for (_, line) in self.flows() {
            let Some(client) = clients.get_mut(&line.client) else { continue };
            client.rx_packets += line.rx.packets;
            client.rx_bytes += line.rx.bytes;
            client.rx_retransmitted += line.rx.retransmitted;
            client.tx_packets += line.tx.packets;
            client.tx_bytes += line.tx.bytes;
            client.tx_retransmitted += line.tx.retransmitted;
            for class in 0..class::COUNT {
                client.calls[class] += line.calls_seen[class];
                client.replies[class] += line.replies_seen[class];
            }
        }
        Ok(clients.into_values().collect())
    }
    pub fn flows(&self) -> Vec<(u32, Flow)> {
        (0..MAX_FLOWS)
            .filter(|&i| {
                let held = self.flows.word(i, offset_of!(Flow, state)).map(|s| s.load(Relaxed));
                matches!(held, Some(state::OPEN | state::CLOSED))
            })
            .filter_map(|i| self.flows.read(i).map(|flow| (i, flow)))
            .collect()
    }
}
