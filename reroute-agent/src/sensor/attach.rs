//! Putting the programs on interfaces, so that they stay when the agent goes, and swapping them under traffic.

use super::choice::{self, Choice, Facts, Way, choose};
use super::load::{self, EGRESS, INGRESS, INGRESS_TC};
use super::{Attachment, LinkKind, SensorError, Settings, clsact};
use crate::config::XdpMode;
use crate::netlink::nic::{self, Nic};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, loaded_programs};
use aya::util::KernelVersion;
use reroute_core::ids::Network;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The first kernel with TCX links.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);
/// A link outlives its pin by a grace period of the kernel's: so long we wait for one of ours to go.
const GONE_WITHIN: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How names of pinned links begin.
fn prefix(way: Way, hook: TcAttachType) -> &'static str {
    match (way, hook) {
        (Way::Native, _) => "link_xdp_native",
        (Way::Generic, _) => "link_xdp_generic",
        (Way::Tcx, TcAttachType::Egress) => "link_tc_egress",
        (Way::Tcx, _) => "link_tc_ingress",
        (Way::Clsact, hook) => clsact::pin(hook),
    }
}

/// Every way in and out.
const WAYS: [(Way, TcAttachType); 6] = [
    (Way::Native, TcAttachType::Ingress),
    (Way::Generic, TcAttachType::Ingress),
    (Way::Tcx, TcAttachType::Ingress),
    (Way::Clsact, TcAttachType::Ingress),
    (Way::Tcx, TcAttachType::Egress),
    (Way::Clsact, TcAttachType::Egress),
];

/// One interface being attached.
struct Target<'a> {
    dir: &'a Path,
    network: Network,
    interface: &'a str,
    index: u32,
}

impl Target<'_> {
    /// The pin names interface and index: a link to an interface that is gone never passes for this one's.
    fn pin(&self, way: Way, hook: TcAttachType) -> PathBuf {
        let name: String =
            self.interface.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        self.dir.join(format!("{}_{name}_{}", prefix(way, hook), self.index))
    }
    fn error(&self, why: impl ToString) -> SensorError {
        SensorError::Attach { interface: self.interface.to_string(), why: why.to_string() }
    }
}

pub(super) fn attach_all(bpf: &mut Ebpf, settings: &Settings) -> Result<Vec<Attachment>, SensorError> {
    let mut attachments = Vec::new();
    let mut kept = BTreeSet::new();
    for (network, interface) in &settings.interfaces {
        let (nic, choice) = survey(&settings.bpf_dir, interface, settings.xdp)?;
        let target = Target { dir: &settings.bpf_dir, network: *network, interface, index: nic.index };
        attachments.push(attach(bpf, &target, settings.xdp, &nic, choice, &mut kept)?);
    }
    // What stands on interfaces we no longer watch.
    for entry in read_dir(&settings.bpf_dir)? {
        if (is_link(&entry) || clsact::is_filter(&entry)) && !kept.contains(&entry) {
            take_away(&entry)?;
        }
    }
    Ok(attachments)
}

/// An interface as it is, and how the programs would be attached to it by an agent that keeps its pins in `dir`.
/// Changes nothing. Errors: there is no such interface; the kernel does not answer.
pub fn survey(dir: &Path, interface: &str, wish: XdpMode) -> Result<(Nic, Choice), SensorError> {
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let nic = look(interface)?;
        let ours = programs_linked_from(dir);
        let foreign: Vec<u32> = nic.xdp.iter().copied().filter(|id| !ours.contains(id)).collect();
        // What is there for a moment more may be ours: from a pin that was just removed.
        if !foreign.is_empty() && Instant::now() < until {
            std::thread::sleep(LOOK_AGAIN);
            continue;
        }
        let names = foreign.iter().map(|id| name_of(*id)).collect::<Vec<_>>().join(", ");
        let facts = Facts {
            driver: nic.driver.clone(),
            mtu: nic.mtu,
            features: nic.features,
            occupant: (!names.is_empty()).then_some(names),
        };
        let choice = choose(wish, &facts);
        return Ok((nic, choice));
    }
}

fn look(interface: &str) -> Result<Nic, SensorError> {
    let mut all =
        nic::read().map_err(|source| SensorError::Io { what: "reading the network interfaces", source })?;
    all.remove(interface).ok_or_else(|| SensorError::Attach {
        interface: interface.to_string(),
        why: "there is no such interface in this network namespace: see `ip link`".into(),
    })
}

/// Ids of the programs that links pinned in `dir` run.
pub(super) fn programs_linked_from(dir: &Path) -> Vec<u32> {
    let links = read_dir(dir).unwrap_or_default().into_iter().filter(|path| is_link(path));
    let infos = links.filter_map(|path| FdLink::from(PinnedLink::from_pin(path).ok()?).info().ok());
    infos.map(|info| info.program_id()).collect()
}

pub(super) fn name_of(program: u32) -> String {
    let found = loaded_programs().filter_map(Result::ok).find(|p| p.id() == program);
    match found.as_ref().and_then(|p| p.name_as_str()).filter(|name| !name.is_empty()) {
        Some(name) => format!("XDP program {name} (id {program})"),
        None => format!("an XDP program (id {program})"),
    }
}

pub(super) fn read_dir(dir: &Path) -> Result<Vec<PathBuf>, SensorError> {
    let failed = |source| SensorError::Directory { dir: dir.to_path_buf(), source };
    std::fs::read_dir(dir).map_err(failed)?.map(|e| e.map(|e| e.path()).map_err(failed)).collect()
}

fn is_link(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("link_"))
}

fn attach(
    bpf: &mut Ebpf,
    target: &Target<'_>,
    wish: XdpMode,
    nic: &Nic,
    choice: Choice,
    kept: &mut BTreeSet<PathBuf>,
) -> Result<Attachment, SensorError> {
    let mut said = choice.passed_over;
    let mut attempts: Vec<_> = choice.attempts.into_iter().map(|a| (a.way, a.why)).collect();
    if wish == XdpMode::Auto {
        // What stands goes on, better or not: only its program is swapped, between two packets.
        attempts.sort_by_key(|(way, _)| !target.pin(*way, TcAttachType::Ingress).exists());
    }
    let ingress = put(bpf, target, TcAttachType::Ingress, attempts, &mut said)?;
    kept.insert(target.pin(ingress, TcAttachType::Ingress));

    let ways: &[Way] = if wish == XdpMode::Clsact { &[Way::Clsact] } else { &[Way::Tcx, Way::Clsact] };
    let attempts = ways.iter().map(|way| (*way, String::new())).collect();
    let egress = put(bpf, target, TcAttachType::Egress, attempts, &mut said)?;
    kept.insert(target.pin(egress, TcAttachType::Egress));

    // Only now: while two programs see a packet it may be counted twice, while none does it may pass a fence.
    for (way, hook) in WAYS {
        let pin = target.pin(way, hook);
        if !kept.contains(&pin) {
            take_away(&pin)?;
        }
    }
    let kind = |way| if way == Way::Clsact { LinkKind::NetlinkFilter } else { LinkKind::BpfLink };
    Ok(Attachment {
        network: target.network,
        interface: target.interface.to_string(),
        index: nic.index,
        driver: nic.driver.clone(),
        mtu: nic.mtu,
        ingress: ingress.mode().to_string(),
        ingress_link: kind(ingress),
        egress: egress.hook().to_string(),
        egress_link: kind(egress),
        multi_buffer: choice::multi_buffer(ingress, nic.features),
        reason: said.join("; "),
    })
}

/// Attaches a program by the first of `attempts` that works, and adds to `said` why.
fn put(
    bpf: &mut Ebpf,
    target: &Target<'_>,
    hook: TcAttachType,
    attempts: Vec<(Way, String)>,
    said: &mut Vec<String>,
) -> Result<Way, SensorError> {
    let direction = if hook == TcAttachType::Egress { "egress " } else { "" };
    for (way, why) in attempts {
        let pin = target.pin(way, hook);
        let name = format!("{direction}{}", way.hook());
        if pin.exists() && way == Way::Tcx && !is_first(target, hook) {
            match go_first(bpf, target, hook) {
                Ok(()) => {
                    said.push(format!("{name}: put before programs that others have put before it"));
                    return Ok(way);
                }
                Err(error) => said.push(format!("{name}: stays behind programs of others: {error}")),
            }
        }
        if pin.exists() {
            match swap(bpf, target, way, hook) {
                Ok(()) => {
                    said.push(format!("{name}: adopted from an earlier agent"));
                    return Ok(way);
                }
                Err(error) => said.push(format!("{name}: what stood could not be adopted: {error}")),
            }
            take_away(&pin)?;
        }
        match fresh(bpf, target, way, hook) {
            Ok(()) => {
                if !why.is_empty() {
                    said.push(format!("{name}: {why}"));
                }
                return Ok(way);
            }
            Err(error) => {
                // What failed half way, too.
                take_away(&pin)?;
                said.push(format!("{name}: {error}{}", lack(way)));
            }
        }
    }
    Err(target.error(said.join("; ")))
}

/// What the running kernel is known to be without.
fn lack(way: Way) -> &'static str {
    match way {
        Way::Tcx if KernelVersion::current().is_ok_and(|running| running < TCX_SINCE) => " (needs Linux 6.6)",
        _ => "",
    }
}

/// Takes away what a pin stands for, and the pin; neither needs to be there.
pub(super) fn take_away(pin: &Path) -> Result<(), SensorError> {
    if clsact::is_filter(pin) {
        return if pin.exists() { clsact::take_away(pin) } else { Ok(()) };
    }
    match std::fs::remove_file(pin) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SensorError::Io { what: "removing an old link", source })
        }
        _ => Ok(()),
    }
}

/// The TC program of a direction.
fn classifier_of(hook: TcAttachType) -> &'static str {
    match hook {
        TcAttachType::Egress => EGRESS,
        _ => INGRESS_TC,
    }
}

/// Puts our program in place of the one that runs.
fn swap(bpf: &mut Ebpf, target: &Target<'_>, way: Way, hook: TcAttachType) -> Result<(), String> {
    let pin = target.pin(way, hook);
    if way == Way::Clsact {
        let program = load::classifier(bpf, classifier_of(hook)).map_err(|e| e.to_string())?;
        return clsact::replace(program, target.interface, hook, &pin).map_err(|e| explain(&e));
    }
    let old = FdLink::from(PinnedLink::from_pin(pin).map_err(|e| e.to_string())?);
    // The pin keeps the link: what the program holds may go when the agent does.
    let swapped = if way.is_xdp() {
        let link = old.try_into().map_err(|e: aya::programs::links::LinkError| e.to_string())?;
        load::xdp(bpf, INGRESS).map_err(|e| e.to_string())?.attach_to_link(link).map(drop)
    } else {
        let link = old.try_into().map_err(|e: aya::programs::links::LinkError| e.to_string())?;
        load::classifier(bpf, classifier_of(hook)).map_err(|e| e.to_string())?.attach_to_link(link).map(drop)
    };
    swapped.map_err(|e| explain(&e))
}

/// Whether nobody is asked before our TCX link that stands, as far as the kernel tells.
fn is_first(target: &Target<'_>, hook: TcAttachType) -> bool {
    let info = PinnedLink::from_pin(target.pin(Way::Tcx, hook)).map(|pin| FdLink::from(pin).info());
    let (Ok(Ok(ours)), Ok((_, programs))) = (info, SchedClassifier::query_tcx(target.interface, hook)) else {
        return true;
    };
    programs.first().is_none_or(|program| program.id() == ours.program_id())
}

/// Puts our program before all others, and then takes away the link that stood behind them.
fn go_first(bpf: &mut Ebpf, target: &Target<'_>, hook: TcAttachType) -> Result<(), String> {
    let pin = target.pin(Way::Tcx, hook);
    let new = pin.with_file_name(format!("{}_new", pin.file_name().unwrap_or_default().to_string_lossy()));
    take_away(&new).map_err(|e| e.to_string())?;
    let pinned = tcx(bpf, target, hook)?.pin(&new).map_err(|e| e.to_string())?;
    std::fs::rename(&new, &pin).map_err(|e| {
        // Nothing of it stays: it would be counted twice.
        let left = pinned.unpin().err().map_or_else(String::new, |error| format!("; {error}"));
        format!("{e}{left}")
    })
}

/// A TCX link before all others: what they let pass would be past us.
fn tcx(bpf: &mut Ebpf, target: &Target<'_>, hook: TcAttachType) -> Result<FdLink, String> {
    let program = load::classifier(bpf, classifier_of(hook)).map_err(|e| e.to_string())?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let attached = program.attach_with_options(target.interface, hook, options);
    let link = attached.and_then(|id| program.take_link(id)).map_err(|e| explain(&e))?;
    link.try_into().map_err(|_| "not a BPF link".to_string())
}

fn fresh(bpf: &mut Ebpf, target: &Target<'_>, way: Way, hook: TcAttachType) -> Result<(), String> {
    let pin = target.pin(way, hook);
    let link: FdLink = match way {
        Way::Native | Way::Generic => fresh_xdp(bpf, target, way)?,
        Way::Tcx => tcx(bpf, target, hook)?,
        Way::Clsact => {
            let program = load::classifier(bpf, classifier_of(hook)).map_err(|e| e.to_string())?;
            return clsact::create(program, target.interface, hook, &pin).map_err(|e| explain(&e));
        }
    };
    link.pin(pin).map(drop).map_err(|e| e.to_string())
}

/// Native and generic XDP exclude each other: a link of ours in the other mode goes first, and takes its time.
fn fresh_xdp(bpf: &mut Ebpf, target: &Target<'_>, way: Way) -> Result<FdLink, String> {
    let mode = match way {
        Way::Native => aya::programs::xdp::XdpMode::Driver,
        _ => aya::programs::xdp::XdpMode::Skb,
    };
    for other in [Way::Native, Way::Generic] {
        take_away(&target.pin(other, TcAttachType::Ingress)).map_err(|e| e.to_string())?;
    }
    let until = Instant::now() + GONE_WITHIN;
    // Looked at first: where links are unknown, aya would put its program over one that is there.
    while look(target.interface).map_err(|e| e.to_string())?.xdp.iter().any(|id| *id != 0) {
        if Instant::now() > until {
            return Err("another XDP program is there and stays".into());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    let program = load::xdp(bpf, INGRESS).map_err(|e| e.to_string())?;
    let id = program.attach_to_if_index(target.index, mode).map_err(|e| explain(&e))?;
    let link = program.take_link(id).map_err(|e| explain(&e))?;
    // aya falls back to netlink silently; that attachment cannot be pinned, so it is none for us.
    link.try_into().map_err(|_| "the driver takes no BPF link".to_string())
}

/// The errno at the bottom says more than the call's name.
pub(super) fn explain(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
