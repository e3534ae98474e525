//! The maps as userspace sees them. Configuration and registrations are written here, field by field; all else is
//! only read.

use super::load::{take_array, take_map};
use super::raw::View;
use super::{Registration, SensorError, Settings};
use crate::clock;
use crate::config::{AdmissionMode, interface_index, map_address, ns};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use reroute_common::flow::{Flow, MAX_FLOWS, state};
use reroute_common::pulse;
use reroute_common::table::{AddressKey, Client, Config, MAX_CLIENTS, Server, mode, pin};
use reroute_core::ids::{HostId, Network};
use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

pub(super) struct Tables {
    config: View<Config>,
    clients: View<Client>,
    flows: View<Flow>,
    server: View<Server>,
    addresses: HashMap<MapData, AddressKey, u32>,
    interfaces: HashMap<MapData, u32, u32>,
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
            interfaces: HashMap::try_from(take_map(bpf, pin::INTERFACES)?)
                .map_err(|source| SensorError::Map { name: pin::INTERFACES, source })?,
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
            service_address: map_address((*settings.service.ip()).into()),
            service_port: settings.service.port().into(),
            pulse_port: pulse::PORT.into(),
            unanswered_limit_ns: ns(timing.unanswered_ms),
            silent_limit_ns: ns(timing.silent_ms),
            affirm_ns: ns(timing.affirm_ms),
            shield_ns: ns(timing.shield_ms),
            timer_period_ns: timing.timer_us * 1000,
            agent_seen_at: clock::now().0,
            agent_state: now.agent_state,
            _pad: 0,
        };
        for (i, word) in super::raw::bytes_of(&config).as_chunks::<8>().0.iter().enumerate() {
            if let Some(long) = self.config.long(0, i * 8) {
                long.store(u64::from_ne_bytes(*word), Relaxed);
            }
        }
        Ok(())
    }

    /// Gives each host its slot: the one it has, else a free one. Slots of hosts no longer named stay as they are.
    pub fn register(&mut self, clients: &[Registration]) -> Result<(), SensorError> {
        let host_offset = offset_of!(Client, host);
        for slot in 1..MAX_CLIENTS {
            if let Some(host) = self.clients.word(slot, host_offset).map(|h| h.load(Relaxed))
                && host != 0
            {
                self.slots.insert(HostId(host), slot);
            }
        }
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
                self.addresses
                    .insert(key, slot, 0)
                    .map_err(|source| SensorError::Map { name: pin::ADDRESSES, source })?;
            }
        }
        Ok(())
    }

    fn free_slot(&self) -> Result<u32, SensorError> {
        (1..MAX_CLIENTS)
            .find(|slot| !self.slots.values().any(|taken| taken == slot))
            .ok_or(SensorError::TooManyHosts { max: MAX_CLIENTS - 1 })
    }

    /// Says which network each interface belongs to; interfaces of before are forgotten.
    pub fn name_interfaces(&mut self, interfaces: &[(Network, String)]) -> Result<(), SensorError> {
        let failed = |source| SensorError::Map { name: pin::INTERFACES, source };
        let mut wanted = BTreeMap::new();
        for (network, name) in interfaces {
            let index = interface_index(name).ok_or_else(|| SensorError::Attach {
                interface: name.clone(),
                why: "there is no such interface in this network namespace: see `ip link`".into(),
            })?;
            wanted.insert(index, number(*network));
        }
        let known: Vec<u32> = self.interfaces.keys().filter_map(Result::ok).collect();
        for (index, network) in &wanted {
            self.interfaces.insert(index, network, 0).map_err(failed)?;
        }
        for index in known.iter().filter(|i| !wanted.contains_key(i)) {
            self.interfaces.remove(index).map_err(failed)?;
        }
        Ok(())
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
    pub fn clients(&self) -> Result<Vec<Client>, SensorError> {
        let mut slots: Vec<u32> = self.slots.values().copied().collect();
        slots.sort_unstable();
        std::iter::once(0)
            .chain(slots)
            .map(|slot| self.clients.read(slot).ok_or(SensorError::NoMap { name: pin::CLIENTS }))
            .collect()
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
