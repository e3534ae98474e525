//! In what order the ways to see an interface's incoming packets are tried. Pure: facts in, attempts with reasons out.
//!
//! Native XDP is the cheapest, but most drivers stop their queues to take a program, some the whole link: a storage
//! network must not lose it because an agent starts. So it comes first only where the driver is known to go on; TC
//! ingress disturbs nobody and comes first everywhere else; generic XDP copies what TC does not, and comes last.

use crate::config::XdpMode;
use crate::netlink::xdp_features::{BASIC, RX_SG};

/// Frames up to this MTU fit one buffer of a page, with the headroom and the tail that XDP reserves there
/// (4096 - 256 - 320, less an Ethernet header).
pub const ONE_BUFFER_MTU: u32 = 3506;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Native,
    /// TC by a link (kernel 6.6).
    Tcx,
    /// TC by a filter on a clsact qdisc.
    Clsact,
    Generic,
}

impl Way {
    pub fn is_xdp(self) -> bool {
        matches!(self, Way::Native | Way::Generic)
    }
    /// The mode, for people.
    pub fn mode(self) -> &'static str {
        match self {
            Way::Native => "xdp native",
            Way::Generic => "xdp generic",
            Way::Tcx | Way::Clsact => "tc",
        }
    }
    /// The hook within the mode.
    pub fn hook(self) -> &'static str {
        match self {
            Way::Tcx => "tcx",
            Way::Clsact => "clsact",
            other => other.mode(),
        }
    }
}

/// What a driver is known to do with its link when it takes a native program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnAttach {
    GoesOn,
    /// It goes on, but for as long as the program is there it does without something that TC does not take away.
    Costs(&'static str),
    Resets(&'static str),
}

/// From the drivers' sources (`ndo_bpf`, XDP_SETUP_PROG). Those not listed are taken for ones that reset.
const DRIVERS: &[(&str, OnAttach)] = &[
    ("tun", OnAttach::GoesOn),
    // Swaps a pointer, and starts NAPI on its own end. What that costs is measured: docs/measurements.md.
    ("veth", OnAttach::Costs("its peer sends no super-packets")),
    // Since 4.14 without a reset: stops NAPI for a moment, packets wait in the ring.
    ("virtio_net", OnAttach::Costs("it receives no super-packets")),
    // xen-netfront. Where the backend offers no headroom it takes the program, says yes, and never runs it.
    ("vif", OnAttach::Resets("it reconfigures with its backend, and may take a program that it never runs")),
    ("vmxnet3", OnAttach::Resets("it resets the device")),
    ("mlx5_core", OnAttach::Resets("it opens its channels anew, without carrier meanwhile")),
    ("mlx4_en", OnAttach::Resets("it stops the port")),
    ("i40e", OnAttach::Resets("it resets and rebuilds the device")),
    ("ice", OnAttach::Resets("it takes the interface down and up")),
    ("ixgbe", OnAttach::Resets("it takes the interface down and up")),
    ("igb", OnAttach::Resets("it takes the interface down and up")),
    ("igc", OnAttach::Resets("it takes the interface down and up")),
    ("bnxt_en", OnAttach::Resets("it closes and opens the device")),
    ("ena", OnAttach::Resets("it takes the device down and up")),
];

/// What is known of an interface before anything is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub driver: Option<String>,
    /// Bytes.
    pub mtu: u32,
    /// Bits of [`crate::netlink::xdp_features`]; `None`: the kernel does not say.
    pub features: Option<u64>,
    /// An XDP program that is not ours, in words.
    pub occupant: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub way: Way,
    /// Why it has its place.
    pub why: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// In this order; never empty.
    pub attempts: Vec<Attempt>,
    /// What is not tried, and why not.
    pub passed_over: Vec<String>,
}

impl Choice {
    /// Mode and hook of what is tried first, and everything that led there.
    pub fn first(&self) -> (String, String) {
        let Some(first) = self.attempts.first() else { return Default::default() };
        let mode = match first.way {
            Way::Tcx | Way::Clsact => format!("{} ({})", first.way.mode(), first.way.hook()),
            xdp => xdp.mode().to_string(),
        };
        let why = [&self.passed_over[..], std::slice::from_ref(&first.why)].concat().join("; ");
        (mode, why)
    }
}

pub fn choose(wish: XdpMode, nic: &Facts) -> Choice {
    let mut choice = Choice { attempts: Vec::new(), passed_over: Vec::new() };
    let mut add = |way, why: &str| choice.attempts.push(Attempt { way, why: why.into() });
    let mut pass = |what: &str, why: String| choice.passed_over.push(format!("{what}: {why}"));
    let driver = nic.driver.as_deref().unwrap_or("no driver of its own");

    if wish == XdpMode::Tc {
        pass("xdp", "not asked for (xdp = \"tc\")".into());
    } else if wish == XdpMode::Clsact {
        pass("xdp, tcx", "not asked for (xdp = \"clsact\")".into());
    } else if let Some(occupant) = &nic.occupant {
        pass("xdp", format!("{occupant} is there already and stays"));
    }
    let xdp = !matches!(wish, XdpMode::Tc | XdpMode::Clsact) && nic.occupant.is_none();

    if xdp && wish != XdpMode::Generic {
        match native(wish, nic, driver) {
            Ok(why) => add(Way::Native, &why),
            Err(why) => pass("xdp native", why),
        }
    }
    if xdp && wish == XdpMode::Generic {
        pass("xdp native", "not asked for (xdp = \"generic\")".into());
        add(Way::Generic, "asked for (xdp = \"generic\")");
    }
    match wish {
        XdpMode::Clsact => add(Way::Clsact, "asked for (xdp = \"clsact\")"),
        _ => {
            let why = if wish == XdpMode::Tc { "asked for (xdp = \"tc\")" } else { "disturbs no driver" };
            add(Way::Tcx, why);
            add(Way::Clsact, why);
        }
    }
    if xdp && wish != XdpMode::Generic {
        add(Way::Generic, "what is left");
    }
    choice
}

/// Why native XDP may be tried, or why not.
fn native(wish: XdpMode, nic: &Facts, driver: &str) -> Result<String, String> {
    if nic.features.is_some_and(|bits| bits & BASIC == 0) {
        return Err(format!("{driver} says that it has none"));
    }
    let large = nic.mtu > ONE_BUFFER_MTU;
    if large && nic.features.is_some_and(|bits| bits & RX_SG == 0) {
        return Err(format!(
            "{driver} gives XDP one buffer per frame, and frames of MTU {} need more (over {ONE_BUFFER_MTU})",
            nic.mtu
        ));
    }
    if wish == XdpMode::Native {
        return Ok("asked for (xdp = \"native\")".into());
    }
    if large && nic.features.is_none() {
        return Err(format!(
            "whether {driver} takes frames of MTU {} is not known to this kernel (before 6.3)",
            nic.mtu
        ));
    }
    match DRIVERS.iter().find(|(name, _)| Some(*name) == nic.driver.as_deref()) {
        Some((_, OnAttach::GoesOn)) => Ok(format!("{driver} takes a program without losing its link")),
        Some((_, OnAttach::Costs(what))) => Err(format!(
            "{driver} would be slower with it: {what} (xdp = \"native\" asks for it all the same)"
        )),
        Some((_, OnAttach::Resets(how))) => {
            Err(format!("{driver} would interrupt the link: {how} (xdp = \"native\" forces it)"))
        }
        None => Err(format!("{driver} may interrupt the link (xdp = \"native\" forces it)")),
    }
}

/// Whether frames of more than one buffer are seen whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MultiBuffer {
    Yes,
    No,
    Unknown,
}

/// Our XDP program takes fragments (`xdp.frags`); behind the driver, packets are whole in any mode.
pub fn multi_buffer(way: Way, features: Option<u64>) -> MultiBuffer {
    match (way, features) {
        (Way::Native, None) => MultiBuffer::Unknown,
        (Way::Native, Some(bits)) if bits & RX_SG == 0 => MultiBuffer::No,
        _ => MultiBuffer::Yes,
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
