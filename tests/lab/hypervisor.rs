//! A stand-in for the toolstack on each host: `xl list -v` prints a file that says which domains there are.

use crate::topology::{Node, PAIRS};
use std::fmt::Write as _;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Number of the domain of each SCVM when a lab starts.
pub const FIRST: u32 = 7;

/// A program in the lab that its agents can run.
pub fn program(root: &Path, name: &str, script: &str) -> io::Result<()> {
    let path = root.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))
}

/// Gives every host its `xl`, and a list with the SCVM beside it. `root`: the lab's file system.
pub(crate) fn install(root: &Path) -> io::Result<()> {
    for pair in 1..=PAIRS {
        let list = root.join(list_of(pair));
        program(
            root,
            &format!("{}/xl", Node::Host(pair)),
            &format!("[ \"$*\" = 'list -v' ] || exit 2\ncat {}", list.display()),
        )?;
        set(root, pair, &[(FIRST, "-b----")])?;
    }
    Ok(())
}

/// Of `[host]`.
pub(crate) fn section(root: &Path, pair: u32) -> String {
    let command = root.join(format!("{}/xl", Node::Host(pair)));
    format!(
        "hypervisor = {{ kind = \"xl\", domain = \"{}\", command = \"{}\" }}\n",
        Node::Scvm(pair),
        command.display()
    )
}

fn list_of(pair: u32) -> String {
    format!("{}/domains", Node::Host(pair))
}

/// Of an SCVM's domain, whatever its number.
pub fn uuid(pair: u32) -> String {
    format!("5b2a3f4e-0c1d-4e2f-8a9b-1c2d3e4f5a6{pair:x}")
}

/// From now on the host of this pair lists Domain-0, and its SCVM's domain by these numbers and states. `root` may be the
/// lab's file system as seen from outside.
pub fn set(root: &Path, pair: u32, scvm: &[(u32, &str)]) -> io::Result<()> {
    let mut text = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label\n".to_string();
    let zero = ("Domain-0".to_string(), 0, "r-----", "00000000-0000-0000-0000-000000000000".to_string());
    let scvm = scvm.iter().map(|(id, state)| (Node::Scvm(pair).to_string(), *id, *state, uuid(pair)));
    for (name, id, state, uuid) in std::iter::once(zero).chain(scvm) {
        let _ = writeln!(
            text,
            "{name:<40} {id:>5}  4096     4     {state}      12.5 {uuid}        -                -"
        );
    }
    // Replaced at once: nobody reads half a list.
    let (path, new) = (root.join(list_of(pair)), root.join(list_of(pair) + ".new"));
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

/// Number of the SCVM's domain by the list; None: it is not in it.
pub(crate) fn number(root: &Path, pair: u32) -> io::Result<Option<u32>> {
    let text = std::fs::read_to_string(root.join(list_of(pair)))?;
    let name = Node::Scvm(pair).to_string();
    let line = text.lines().find(|l| l.split_whitespace().next() == Some(&name));
    Ok(line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_what_was_set() {
        let root = std::env::temp_dir().join(format!("reroute-xl-{}", std::process::id()));
        for pair in 1..=PAIRS {
            std::fs::create_dir_all(root.join(Node::Host(pair).to_string())).unwrap();
        }
        install(&root).unwrap();
        let listed = std::process::Command::new(root.join("host2/xl")).args(["list", "-v"]).output().unwrap();
        assert!(String::from_utf8(listed.stdout).unwrap().contains(&uuid(2)));
        assert_eq!(number(&root, 2).unwrap(), Some(FIRST));
        set(&root, 2, &[]).unwrap();
        assert_eq!(number(&root, 2).unwrap(), None);
        assert_eq!(number(&root, 1).unwrap(), Some(FIRST));
        std::fs::remove_dir_all(&root).unwrap();
    }
}
