//! Putting the programs on interfaces, so that they stay when the agent goes, and swapping them under traffic.

use super::load::{self, EGRESS, INGRESS, INGRESS_TC};
use super::{Attachment, SensorError, Settings};
use crate::config::{XdpMode, interface_index};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};
use reroute_core::ids::Network;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Priority and handle of our filters where there are no TCX links: they tell ours from others'.
const PRIORITY: u16 = 49_100;
const HANDLE: TcHandle = TcHandle::new(0, 1);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Native,
    Generic,
    TcIngress,
    Egress,
}

impl Way {
    fn pin(self) -> &'static str {
        match self {
            Way::Native => "xdp_native",
            Way::Generic => "xdp_generic",
            Way::TcIngress => "tc_ingress",
            Way::Egress => "tc_egress",
        }
    }
    fn says(self) -> &'static str {
        match self {
            Way::Native => "xdp native",
            Way::Generic => "xdp generic",
            Way::TcIngress => "tc",
            Way::Egress => "tcx",
        }
    }
}

/// One interface being attached.
struct Target<'a> {
    dir: &'a Path,
    network: Network,
    interface: &'a str,
    index: u32,
}

impl Target<'_> {
    /// The pin names interface and index: a link to an interface that is gone never passes for this one's.
    fn pin(&self, way: Way) -> PathBuf {
        let name: String =
            self.interface.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        self.dir.join(format!("link_{}_{name}_{}", way.pin(), self.index))
    }
    fn error(&self, why: impl ToString) -> SensorError {
        SensorError::Attach { interface: self.interface.to_string(), why: why.to_string() }
    }
}

pub(super) fn attach_all(bpf: &mut Ebpf, settings: &Settings) -> Result<Vec<Attachment>, SensorError> {
    let mut attachments = Vec::new();
    let mut kept = BTreeSet::new();
    for (network, interface) in &settings.interfaces {
        let index = interface_index(interface).ok_or_else(|| SensorError::Attach {
            interface: interface.clone(),
            why: "there is no such interface in this network namespace: see `ip link`".into(),
        })?;
        let target = Target { dir: &settings.bpf_dir, network: *network, interface, index };
        attachments.push(attach(bpf, &target, settings.xdp, &mut kept)?);
    }
    // Links of interfaces we no longer watch.
    for entry in read_dir(&settings.bpf_dir)? {
        if is_link(&entry) && !kept.contains(&entry) {
            std::fs::remove_file(&entry)
                .map_err(|source| SensorError::Io { what: "removing an old link", source })?;
        }
    }
    Ok(attachments)
}

fn read_dir(dir: &Path) -> Result<Vec<PathBuf>, SensorError> {
    let failed = |source| SensorError::Directory { dir: dir.to_path_buf(), source };
    std::fs::read_dir(dir).map_err(failed)?.map(|e| e.map(|e| e.path()).map_err(failed)).collect()
}

fn is_link(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("link_"))
}

fn attach(
    bpf: &mut Ebpf,
    target: &Target<'_>,
    mode: XdpMode,
    kept: &mut BTreeSet<PathBuf>,
) -> Result<Attachment, SensorError> {
    let ways: &[Way] = match mode {
        XdpMode::Auto => &[Way::Native, Way::Generic, Way::TcIngress],
        XdpMode::Generic => &[Way::Generic, Way::TcIngress],
        XdpMode::Tc => &[Way::TcIngress],
    };
    let mut reason = match mode {
        XdpMode::Auto => String::new(),
        XdpMode::Generic => "native: not asked for (xdp = \"generic\")".to_string(),
        XdpMode::Tc => "xdp: not asked for (xdp = \"tc\")".to_string(),
    };
    // What stands goes on: only its program is swapped, between two packets.
    let standing = ways.iter().copied().find(|way| target.pin(*way).exists());
    let mut ingress = None;
    if let Some(way) = standing
        && swap(bpf, target, way).is_ok()
    {
        ingress = Some(way);
        add(&mut reason, format!("{}: adopted", way.says()));
    }
    if ingress.is_none() {
        for way in [Way::Native, Way::Generic, Way::TcIngress] {
            remove(&target.pin(way))?;
        }
        for way in ways {
            match fresh(bpf, target, *way) {
                Ok(()) => {
                    ingress = Some(*way);
                    break;
                }
                Err(error) => add(&mut reason, format!("{}: {error}", way.says())),
            }
        }
    }
    let Some(ingress) = ingress else { return Err(target.error(reason)) };
    kept.insert(target.pin(ingress));

    let egress_pin = target.pin(Way::Egress);
    let tcx = if egress_pin.exists() && swap(bpf, target, Way::Egress).is_ok() {
        Ok(())
    } else {
        remove(&egress_pin)?;
        fresh(bpf, target, Way::Egress)
    };
    let egress = match tcx {
        Ok(()) => {
            kept.insert(egress_pin);
            "tcx"
        }
        Err(error) => {
            add(&mut reason, format!("tcx: {error}"));
            clsact(load::classifier(bpf, EGRESS)?, target)?;
            "clsact"
        }
    };
    Ok(Attachment {
        network: target.network,
        interface: target.interface.to_string(),
        ingress: ingress.says().to_string(),
        egress: egress.to_string(),
        reason,
    })
}

fn add(reason: &mut String, more: String) {
    if !reason.is_empty() {
        reason.push_str("; ");
    }
    reason.push_str(&more);
}

fn remove(path: &Path) -> Result<(), SensorError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(SensorError::Io { what: "removing an old link", source })
        }
        _ => Ok(()),
    }
}

/// Puts our program into a pinned link, in place of the one that runs.
fn swap(bpf: &mut Ebpf, target: &Target<'_>, way: Way) -> Result<(), SensorError> {
    let old = FdLink::from(PinnedLink::from_pin(target.pin(way)).map_err(|e| target.error(e))?);
    // The pin keeps the link: what the program holds may go when the agent does.
    match way {
        Way::Native | Way::Generic => {
            let link = old.try_into().map_err(|e| target.error(e))?;
            let program = load::xdp(bpf, INGRESS)?;
            program.attach_to_link(link).map(drop)
        }
        Way::TcIngress | Way::Egress => {
            let link = old.try_into().map_err(|e| target.error(e))?;
            let name = if way == Way::Egress { EGRESS } else { INGRESS_TC };
            let program = load::classifier(bpf, name)?;
            program.attach_to_link(link).map(drop)
        }
    }
    .map_err(|e| target.error(explain(&e)))
}

fn fresh(bpf: &mut Ebpf, target: &Target<'_>, way: Way) -> Result<(), SensorError> {
    let failed = |error: ProgramError| target.error(explain(&error));
    let link: FdLink = match way {
        Way::Native | Way::Generic => {
            let program = load::xdp(bpf, INGRESS)?;
            let mode = match way {
                Way::Native => aya::programs::xdp::XdpMode::Driver,
                _ => aya::programs::xdp::XdpMode::Skb,
            };
            let id = program.attach_to_if_index(target.index, mode).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            // aya falls back to netlink silently; that attachment cannot be pinned, so it is none for us.
            link.try_into().map_err(|_| target.error("the driver takes no BPF link"))?
        }
        Way::TcIngress | Way::Egress => {
            let (name, hook) = match way {
                Way::Egress => (EGRESS, TcAttachType::Egress),
                _ => (INGRESS_TC, TcAttachType::Ingress),
            };
            let program = load::classifier(bpf, name)?;
            let options = TcAttachOptions::TcxOrder(LinkOrder::default());
            let id = program.attach_with_options(target.interface, hook, options).map_err(failed)?;
            let link = program.take_link(id).map_err(failed)?;
            link.try_into().map_err(|_| target.error("not a BPF link"))?
        }
    };
    link.pin(target.pin(way)).map(drop).map_err(|e| target.error(e))
}

/// Kernels before 6.6: a filter on clsact, replaced in place, which stays without any pin.
fn clsact(program: &mut SchedClassifier, target: &Target<'_>) -> Result<(), SensorError> {
    let failed = |error: ProgramError| target.error(explain(&error));
    // Refused if it is there already, by us or by somebody else: both are fine.
    let _ = tc::qdisc_add_clsact(target.interface);
    let standing =
        SchedClassifierLink::attached(target.interface, TcAttachType::Egress, PRIORITY, HANDLE, None)
            .map_err(|e| target.error(e))?;
    let id = match program.attach_to_link(standing) {
        Ok(id) => id,
        Err(_) => {
            let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
            program
                .attach_with_options(
                    target.interface,
                    TcAttachType::Egress,
                    TcAttachOptions::Netlink(options),
                )
                .map_err(failed)?
        }
    };
    std::mem::forget(program.take_link(id).map_err(failed)?);
    Ok(())
}

/// The errno at the bottom says more than the call's name.
fn explain(error: &ProgramError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
