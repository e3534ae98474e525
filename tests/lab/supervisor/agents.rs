//! The agents: the release binary, one per node, each with a configuration of its own.

use super::servers::{epoch_file, pidfile};
use super::{Supervisor, esxi};
use crate::control::Spec;
use crate::options::{Options, ServerKind};
use crate::topology::{HOST_PRIVATE, META_PORT, METRICS_PORT, NFS_PORT, Node, PAIRS, SERVICE};
use anyhow::{Context, bail};
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// Loading the programs takes the verifier some seconds on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);

/// Meta first, then the SCVMs, then the hosts: the order in which a cluster is put into service.
pub fn start(lab: &Supervisor) -> anyhow::Result<()> {
    let binary = super::beside("reroute-agent")?;
    let key = lab.root.join("cluster.key");
    write_secret(&key, &new_key()?)?;
    let mut nodes: Vec<Node> = Node::all().into_iter().filter(|n| has_agent(&lab.options, *n)).collect();
    nodes.sort_by_key(|n| match n {
        Node::Meta => 0,
        Node::Scvm(_) => 1,
        Node::Host(_) => 2,
    });
    for &node in &nodes {
        let dir = lab.node_dir(node);
        let config = dir.join("agent.toml");
        std::fs::write(&config, configuration(&lab.options, &lab.root, node))?;
        let role = match node {
            Node::Meta => "meta",
            Node::Scvm(_) => "scvm",
            Node::Host(_) => "host",
        };
        let (binary, config) = (binary.to_string_lossy(), config.to_string_lossy());
        let mut words = vec![&*binary, role, "--config", &*config];
        let records = dir.join("records");
        let recorded = records.to_string_lossy();
        if lab.options.record {
            std::fs::create_dir_all(&records)?;
            words.extend(["--record", &*recorded]);
        }
        let mut spec = Spec::new(format!("{node}/agent"), &words);
        spec.env.insert("NO_COLOR".into(), "1".into());
        spec.env.insert("REROUTE_LOG".into(), lab.options.log.clone());
        lab.run(spec)?;
    }
    let deadline = Instant::now() + WITHIN;
    for node in nodes {
        let (name, socket) = (format!("{node}/agent"), lab.node_dir(node).join("agent.sock"));
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let status = lab.processes.status(&name)?;
            if let Some(exit) = status.exit {
                bail!("{name} ended while it started: {exit:?}");
            }
            if Instant::now() > deadline {
                bail!("{name} does not serve {} after {} s", socket.display(), WITHIN.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn has_agent(options: &Options, node: Node) -> bool {
    !matches!(node, Node::Host(i) if options.agentless.contains(&i))
}

/// For root's eyes alone, from the first byte on.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn new_key() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes).context("/dev/urandom")?;
    Ok(bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    }))
}

/// The agent's TOML for `node`.
fn configuration(options: &Options, root: &Path, node: Node) -> String {
    let dir = root.join(node.to_string());
    let mut text = String::new();
    let _ = write!(
        text,
        "[cluster]\nid = \"lab-{id}\"\nkey_file = \"{root}/cluster.key\"\nservice_address = \"{SERVICE}\"\n\
         service_port = {NFS_PORT}\nmeta = [\"{sto}:{META_PORT}\", \"{mgt}:{META_PORT}\"]\n",
        id = options.id,
        root = root.display(),
        sto = Node::Meta.storage(),
        mgt = Node::Meta.management(),
    );
    for i in 1..=PAIRS {
        let _ = write!(
            text,
            "\n[[cluster.hosts]]\nid = {i}\nname = \"{node}\"\nprivate = \"{HOST_PRIVATE}\"\n\
             storage = \"{}\"\nmanagement = \"{}\"\nlocal_scvm = {i}\nagent = {agent}\n",
            Node::Host(i).storage(),
            Node::Host(i).management(),
            node = Node::Host(i),
            agent = has_agent(options, Node::Host(i)),
        );
        if options.esxi.contains(&i) {
            text.push_str(&esxi::login(root, Node::Host(i)));
        }
    }
    let server = match options.server {
        ServerKind::Ganesha => "nfs-ganesha",
        ServerKind::Controllable => "reroute-nfsd",
    };
    let policy = format!("{:?}", options.fence_policy()).to_lowercase();
    for i in 1..=PAIRS {
        let scvm = Node::Scvm(i);
        let _ = write!(
            text,
            "\n[[cluster.scvms]]\nid = {i}\nname = \"{scvm}\"\nstorage = \"{}\"\nmanagement = \"{}\"\n\
             server = {{ name = \"{server}\", pidfile = \"{}\", policy = \"{policy}\" }}\n",
            scvm.storage(),
            scvm.management(),
            pidfile(&root.join(scvm.to_string())).display(),
        );
    }
    if !options.timing.is_empty() {
        text.push_str("\n[timing]\n");
        for (key, ms) in &options.timing {
            let _ = writeln!(text, "{key} = {ms}");
        }
    }
    let common = format!(
        "state_dir = \"{dir}/state\"\nsocket = \"{dir}/agent.sock\"\nmetrics = \"{}:{METRICS_PORT}\"\n",
        node.management(),
        dir = dir.display(),
    );
    let interfaces = "interfaces = { private = \"nfs0\", storage = \"sto0\", management = \"mgt0\" }\n";
    match node {
        Node::Meta => {
            let _ = write!(
                text,
                "\n[meta]\nlisten = [\"{}:{META_PORT}\", \"{}:{META_PORT}\"]\n{common}",
                node.storage(),
                node.management()
            );
        }
        Node::Host(i) => {
            let chosen =
                options.sections.get(&node.to_string()).is_some_and(|lines| lines.starts_with("mode ="));
            let mode = if chosen { "" } else { "mode = \"auto\"\n" };
            let _ = write!(text, "\n[host]\nid = {i}\n{mode}{common}{interfaces}");
            if options.hypervisor {
                text.push_str(&crate::hypervisor::section(root, i));
            }
        }
        Node::Scvm(i) => {
            let _ = write!(
                text,
                "\n[scvm]\nid = {i}\nbpf_dir = \"{}\"\nepoch_file = \"{}\"\n{common}{interfaces}",
                dir.join("bpf").display(),
                epoch_file(&dir).display()
            );
            if let Some(mode) = &options.mode {
                let _ = writeln!(text, "mode = \"{mode}\"");
            }
        }
    }
    if let Some(section) = options.sections.get(&node.to_string()) {
        text.push_str(&section.replace("{root}", &root.display().to_string()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use reroute_agent::config::Config;
    use reroute_core::ids::FencePolicy;

    #[test]
    fn agents_accept_their_configurations() {
        let root = std::env::temp_dir().join(format!("reroute-lab-config-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("cluster.key"), new_key().unwrap()).unwrap();
        let options = Options { mode: Some("shadow".into()), ..Options::default() }
            .timing("silent_ms", 70)
            .policy(FencePolicy::Wait)
            .agentless(2)
            .esxi(3)
            .section("meta", "fence_command = { command = [\"{root}/fence\"] }")
            .section("host1", "hypervisor = { kind = \"xl\", domain = \"scvm1\", command = \"{root}/xl\" }");
        for node in Node::all() {
            let path = root.join(format!("{node}.toml"));
            std::fs::write(&path, configuration(&options, &root, node)).unwrap();
            let config = Config::load(&path).unwrap();
            assert_eq!(config.timing.silent_ms, 70);
            assert_eq!(config.cluster.scvms[2].server.policy, FencePolicy::Wait);
            let esxi: Vec<bool> = config.cluster.hosts.iter().map(|h| h.esxi.is_some()).collect();
            assert_eq!(esxi, [false, false, true]);
            assert_eq!(config.meta().is_ok(), node == Node::Meta);
            if let Ok(meta) = config.meta() {
                let fence = root.join("fence").display().to_string();
                assert_eq!(meta.fence_command.as_ref().map(|c| &c.command[..]), Some(&[fence][..]));
            }
            assert_eq!(config.host().is_ok(), matches!(node, Node::Host(_)) && has_agent(&options, node));
            assert_eq!(config.scvm().is_ok(), matches!(node, Node::Scvm(_)));
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
