//! What `esxcfg-route -l` prints, read to its last character: a table that is not understood changes no route.
//!
//! ```text
//! VMkernel Routes:
//! Network          Netmask          Gateway          Interface
//! 10.10.85.0       255.255.255.0    Local Subnet     vmk1
//! 192.168.33.2     255.255.255.255  10.10.85.21      vmk1
//! default          0.0.0.0          192.168.85.1     vmk0
//! ```

use std::net::Ipv4Addr;

const TITLE: &str = "VMkernel Routes:";
const HEAD: [&str; 4] = ["Network", "Netmask", "Gateway", "Interface"];
/// A host has some tens of routes. More than this is no table of one.
const LONGEST: usize = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub network: Ipv4Addr,
    pub prefix: u8,
    /// None: on link ("Local Subnet").
    pub gateway: Option<Ipv4Addr>,
    pub interface: String,
}

/// What was not understood: a line, or a word about the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexpected(pub String);

/// Every route that is shown.
///
/// # Errors
/// Anything else than a whole table: another title or head, a row of another shape, an address with bits beyond its
/// mask, an end in mid-line, no row of an interface's own subnet (a host that is reached over one has some).
pub fn parse(text: &str) -> Result<Vec<Row>, Unexpected> {
    let whole = |why: &str| Unexpected(why.to_string());
    if text.len() > LONGEST {
        return Err(whole("an output of more than 64 KiB"));
    }
    if text.trim().is_empty() {
        return Err(whole("an empty output"));
    }
    if !text.ends_with('\n') {
        return Err(whole("an output that ends in mid-line"));
    }
    let mut lines = text.lines();
    expect(lines.next(), |line| line.trim_end() == TITLE)?;
    expect(lines.next(), |line| line.split_whitespace().eq(HEAD))?;
    let mut rows = Vec::new();
    for (i, line) in lines.enumerate() {
        // Some releases rule a line below the head.
        if i == 0 && is_ruler(line) {
            continue;
        }
        rows.push(row(line).ok_or_else(|| shown(line))?);
    }
    match rows.iter().any(|r| r.gateway.is_none()) {
        true => Ok(rows),
        false => Err(whole("a table without any local subnet")),
    }
}

fn expect(line: Option<&str>, fits: impl Fn(&str) -> bool) -> Result<(), Unexpected> {
    match line {
        Some(line) if fits(line) => Ok(()),
        Some(line) => Err(shown(line)),
        None => Err(Unexpected("an output that ends before its head".into())),
    }
}

/// The line as people may see it: without control characters, and not too long.
fn shown(line: &str) -> Unexpected {
    let kept: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect();
    Unexpected(format!("the line {kept:?}"))
}

fn is_ruler(line: &str) -> bool {
    let mut words = line.split_whitespace().peekable();
    words.peek().is_some() && words.all(|w| w.bytes().all(|b| b == b'-'))
}

fn row(line: &str) -> Option<Row> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (network, mask, gateway, interface) = match *words.as_slice() {
        [network, mask, "Local", "Subnet", interface] => (network, mask, None, interface),
        [network, mask, gateway, interface] => (network, mask, Some(gateway), interface),
        _ => return None,
    };
    let gateway = match gateway {
        None => None,
        Some(text) => Some(text.parse().ok()?),
    };
    let prefix = prefix_of(mask.parse().ok()?)?;
    let network = match network {
        "default" if prefix == 0 => Ipv4Addr::UNSPECIFIED,
        "default" => return None,
        text => text.parse().ok()?,
    };
    let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    let named =
        !interface.is_empty() && interface.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let fits = u32::from(network) & host_bits == 0 && named;
    fits.then(|| Row { network, prefix, gateway, interface: interface.to_string() })
}

/// None: ones after zeros.
fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = u32::from(mask);
    let prefix = bits.leading_ones();
    (bits.checked_shl(prefix).unwrap_or(0) == 0).then_some(prefix as u8)
}

/// What a table says of one address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// No route of its own: it is reached by whatever covers it.
    None,
    Via(Ipv4Addr),
    /// Routes that nobody sets here, in words.
    Strange(String),
}

/// The route to exactly this address.
pub fn to_address(rows: &[Row], address: Ipv4Addr) -> Found {
    let ours: Vec<&Row> = rows.iter().filter(|r| r.prefix == 32 && r.network == address).collect();
    match *ours.as_slice() {
        [] => Found::None,
        [Row { gateway: Some(gateway), .. }] => Found::Via(*gateway),
        [Row { gateway: None, interface, .. }] => {
            Found::Strange(format!("{address}/32 is on link of {interface}"))
        }
        _ => Found::Strange(format!("{} routes to {address}/32", ours.len())),
    }
}
