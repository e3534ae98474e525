//! Clients: whose ids and addresses clash, by name.

use crate::config::Config;
use crate::meta::testing::Dir;
use reroute_core::ids::{HostId, Network, ScvmId};

const SCVM: &str = r#"
[[cluster.scvms]]
id = 1
name = "s1"
storage = "10.0.0.1"
management = "10.1.0.1"
server = { name = "nfsd", pidfile = "/run/nfsd.pid", policy = "storage" }
"#;

fn host(id: u32, storage: &str, more: &str) -> String {
    format!(
        "[[cluster.hosts]]\nid = {id}\nname = \"h{id}\"\nprivate = \"192.168.33.1\"\nstorage = \"{storage}\"\n\
         management = \"10.1.0.1{id}\"\nlocal_scvm = 1\n{more}\n"
    )
}

fn client(id: u32, addresses: &str) -> String {
    format!("[[cluster.clients]]\nid = {id}\nname = \"c{id}\"\n{addresses}\n")
}

fn load(parts: &[String]) -> Result<Config, String> {
    let dir = Dir::new("check");
    let d = dir.path().display();
    std::fs::write(dir.path().join("key"), "ab".repeat(32)).unwrap();
    let text = format!(
        "[cluster]\nid = \"c\"\nkey_file = \"{d}/key\"\nservice_address = \"192.168.33.2\"\nmeta = \
         [\"127.0.0.1:7480\"]\n{}{SCVM}[host]\nid = 1\nstate_dir = \"{d}\"\nsocket = \"{d}/s\"\n\
         interfaces = {{ private = \"lo\", storage = \"lo\", management = \"lo\" }}\n",
        parts.concat()
    );
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).map_err(|e| format!("{:#}", anyhow::Error::from(e)))
}

#[test]
fn clients_are_hosts_without_an_agent_and_others() {
    let config = load(&[
        host(1, "10.0.0.11", ""),
        host(2, "10.0.0.12", "agent = false"),
        client(9, "storage = \"10.0.0.99\""),
    ])
    .unwrap();
    let all = config.cluster.clients_at(ScvmId(1));
    let seen: Vec<_> = all.iter().map(|c| (c.id, c.has_agent, c.addresses.len())).collect();
    assert_eq!(seen, [(HostId(1), true, 3), (HostId(2), false, 3), (HostId(9), false, 1)]);
    assert_eq!(all[2].addresses, [(Network::Storage, [10, 0, 0, 99].into())]);
    let agents: Vec<bool> = config.cluster.host_infos().iter().map(|h| h.has_agent).collect();
    assert_eq!(agents, [true, false, false]);
    assert!(config.host().is_ok());
}

#[test]
fn an_agent_does_not_run_where_there_is_none() {
    let error = format!("{}", load(&[host(1, "10.0.0.11", "agent = false")]).unwrap().host().unwrap_err());
    assert!(error.contains("agent = false") && error.contains("host 1 (h1)"), "{error}");
}

#[test]
fn clashes_are_named_and_say_what_to_do() {
    let one = || host(1, "10.0.0.11", "");
    for (parts, words) in [
        (vec![one(), host(2, "10.0.0.11", "")], ["10.0.0.11", "both h1 and h2", "correct"]),
        (vec![one(), client(2, "storage = \"10.0.0.11\"")], ["10.0.0.11", "both h1 and c2", "correct"]),
        (vec![one(), client(2, "management = \"10.1.0.1\"")], ["10.1.0.1", "both c2 and s1", "correct"]),
        (
            vec![one(), client(2, "storage = \"10.0.0.20\"\nmanagement = \"10.0.0.20\"")],
            ["10.0.0.20", "both c2 and c2", "correct"],
        ),
        (vec![one(), client(1, "storage = \"10.0.0.20\"")], ["host 1", "both h1 and c1", "give one of them"]),
        (vec![one(), client(0, "storage = \"10.0.0.20\"")], ["host 0", "c0", "start at 1"]),
        (vec![one(), client(2, "")], ["cluster.clients", "c2", "storage, management, or both"]),
        (vec![one(), client(2, "storage = \"192.168.33.1\"")], ["192.168.33.1", "c2", "private address"]),
        (vec![one(), client(2, "storage = \"192.168.33.2\"")], ["192.168.33.2", "c2", "service address"]),
    ] {
        let error = load(&parts).unwrap_err();
        assert!(words.iter().all(|w| error.contains(w)), "{words:?} in {error}");
    }
}

const ESXI: &str = "agent = false\nesxi = { address = \"10.1.0.12\", user = \"root\", identity = \"/etc/reroute/key\", \
                    known_hosts = \"/etc/reroute/known\" }";

#[test]
fn a_login_to_an_esxi_host_is_written_down_in_full() {
    let config = load(&[host(1, "10.0.0.11", ""), host(2, "10.0.0.12", ESXI)]).unwrap();
    let esxi = config.cluster.hosts[1].esxi.as_ref().unwrap();
    assert_eq!((esxi.port, esxi.user.as_str()), (22, "root"));
    assert!(config.cluster.hosts[0].esxi.is_none());
    for key in ["address", "user", "identity", "known_hosts"] {
        let entries: Vec<&str> =
            ESXI.split(", ").filter(|part| !part.contains(&format!("{key} = "))).collect();
        // The first and the last entry carry the braces.
        let text = match key {
            "address" => format!("agent = false\nesxi = {{ {}", entries.join(", ")),
            "known_hosts" => format!("{} }}", entries.join(", ")),
            _ => entries.join(", "),
        };
        let error = load(&[host(1, "10.0.0.11", ""), host(2, "10.0.0.12", &text)]).unwrap_err();
        assert!(error.contains(&format!("missing field `{key}`")), "{error}");
    }
}

#[test]
fn a_login_to_an_esxi_host_holds_nothing_a_shell_or_ssh_would_read_otherwise() {
    for (from, to, words) in [
        ("agent = false\n", "", ["cluster.hosts.esxi", "h2", "agent = false"]),
        ("10.1.0.12", "0.0.0.0", ["esxi.address", "h2", "0.0.0.0"]),
        ("\"root\"", "\"\"", ["esxi.user", "h2", "lower-case"]),
        ("\"root\"", "\"-oProxyCommand=x\"", ["esxi.user", "h2", "lower-case"]),
        ("\"root\"", "\"root;reboot\"", ["esxi.user", "h2", "lower-case"]),
        ("/etc/reroute/key", "key", ["esxi.identity", "h2", "absolute"]),
        ("/etc/reroute/key", "", ["esxi.identity", "h2", "absolute"]),
        ("/etc/reroute/known", "/etc/a b", ["esxi.known_hosts", "h2", "absolute"]),
        ("/etc/reroute/known", "/etc/%d", ["esxi.known_hosts", "h2", "absolute"]),
        ("user =", "port = 0, user =", ["esxi.port", "h2", "port 0"]),
    ] {
        let text = ESXI.replace(from, to);
        assert_ne!(text, ESXI, "{from}");
        let error = load(&[host(1, "10.0.0.11", ""), host(2, "10.0.0.12", &text)]).unwrap_err();
        assert!(words.iter().all(|w| error.contains(w)), "{words:?} in {error}");
    }
}

#[test]
fn a_login_leads_to_the_host_it_is_of_and_to_no_other() {
    let at = |address: &str| ESXI.replace("10.1.0.12", address);
    let hosts = |second: &str, third: &str| {
        [host(1, "10.0.0.11", ""), host(2, "10.0.0.12", second), host(3, "10.0.0.13", third)]
    };
    load(&hosts(&at("10.1.0.12"), &at("10.1.0.13"))).unwrap();
    // A third network; and two hosts behind one address that forwards ports.
    load(&hosts(&at("10.2.0.1"), &at("10.2.0.1").replace("user =", "port = 2022, user ="))).unwrap();
    for (second, third, words) in [
        (at("10.2.0.1"), at("10.2.0.1"), ["10.2.0.1 port 22", "both h2 and h3", "each its own"]),
        (at("10.1.0.1"), at("10.1.0.13"), ["10.1.0.1", "address of s1", "its own management"]),
        (at("10.0.0.1"), at("10.1.0.13"), ["10.0.0.1", "address of s1", "its own management"]),
        (at("10.1.0.11"), at("10.1.0.13"), ["10.1.0.11", "address of h1", "its own management"]),
        (at("10.1.0.13"), "agent = false".into(), ["10.1.0.13", "address of h3", "its own management"]),
        (at("192.168.33.2"), at("10.1.0.13"), ["192.168.33.2", "h2", "service address"]),
        (at("192.168.33.1"), at("10.1.0.13"), ["192.168.33.1", "h2", "private address"]),
    ] {
        let error = load(&hosts(&second, &third)).unwrap_err();
        assert!(error.contains("cluster.hosts.esxi.address"), "{error}");
        assert!(words.iter().all(|w| error.contains(w)), "{words:?} in {error}");
    }
}
