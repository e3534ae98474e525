//! The hypervisor of this node, asked for its domains.
//!
//! `xl list -v` and nothing else: the list comes from the hypervisor itself, only names from xenstore. A question for
//! one domain by name (`xl list NAME`, `xl domid NAME`) fails alike for "no such domain" and for "xenstore did not
//! answer", so its failure proves nothing.

use crate::command;
use crate::config::Hypervisor;
use reroute_core::host::{Domain, Life};
use std::time::Duration;

/// Every domain of this node. Blocks. Errors, in words: whatever is not the whole list.
pub fn domains(hypervisor: &Hypervisor) -> Result<Vec<Domain>, String> {
    let Hypervisor::Xl { command, time_limit_ms, .. } = hypervisor;
    let shown = format!("{} list -v", command.display());
    let arguments = ["list", "-v"].map(String::from);
    let ended = command::run(command, &arguments, &[], Duration::from_millis(*time_limit_ms))
        .map_err(|error| format!("{shown} cannot be started: {error}"))?;
    let said = || ended.tail(200);
    match ended.status {
        None => return Err(format!("{shown} did not end within {time_limit_ms} ms: {}", said())),
        Some(status) if !status.success() => return Err(format!("{shown}: {status}: {}", said())),
        Some(_) if ended.cut => return Err(format!("{shown}: too much output to be a list")),
        Some(_) => {}
    }
    let text = String::from_utf8(ended.stdout).map_err(|_| format!("{shown}: not UTF-8"))?;
    parse(&text).map_err(|why| format!("{shown}: {why}"))
}

/// Reads the whole list, or nothing: a line that is not understood may be the one that matters.
fn parse(text: &str) -> Result<Vec<Domain>, String> {
    let mut lines = text.lines();
    let head = lines.next().unwrap_or_default();
    if !head.starts_with("Name ") || !head.contains("State") || !head.contains("UUID") {
        return Err(format!("no list of domains: {head:?}"));
    }
    let domains: Vec<Domain> = lines.map(line).collect::<Result<_, _>>()?;
    match domains.iter().any(|d| d.id == 0) {
        true => Ok(domains),
        false => Err("Domain-0 is missing: not the whole list".into()),
    }
}

/// `NAME ID MEM VCPUS STATE TIME UUID REASON LABEL...`, counted from the UUID: names may hold blanks, and newer
/// releases put more at the end.
fn line(text: &str) -> Result<Domain, String> {
    let bad = || format!("line not understood: {text:?}");
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|w| is_uuid(w)).filter(|at| *at >= 5).ok_or_else(bad)?;
    let (state, id) = (words[at - 2], words[at - 5]);
    Ok(Domain {
        id: id.parse().map_err(|_| bad())?,
        uuid: words[at].to_ascii_lowercase(),
        // xl prints (null) for what xenstore does not tell.
        name: Some(words[..at - 5].join(" ")).filter(|n| n != "(null)").unwrap_or_default(),
        life: life(state).ok_or_else(bad)?,
    })
}

fn is_uuid(word: &str) -> bool {
    let parts: Vec<&str> = word.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|p| p.len()).collect();
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Six letters: running, blocked, paused, shut down, why shut down (`-` power off, `r`eboot, `s`uspend, `c`rash,
/// `w`atchdog, `S`oft reset, `?`), dying.
fn life(state: &str) -> Option<Life> {
    let letters: [u8; 6] = state.as_bytes().try_into().ok()?;
    let flags = [(0, b'r'), (1, b'b'), (2, b'p'), (3, b's'), (5, b'd')];
    if !flags.iter().all(|(i, set)| letters[*i] == *set || letters[*i] == b'-') {
        return None;
    }
    let (shut_down, dying) = (letters[3] == b's', letters[5] == b'd');
    Some(match (dying, shut_down, letters[4]) {
        (_, false, reason) if reason != b'-' => return None,
        (true, ..) => Life::Dead,
        (false, false, _) => Life::Alive,
        (false, true, b'-' | b'r' | b'c' | b'w') => Life::Dead,
        (false, true, b's' | b'S' | b'?') => Life::Suspended,
        (false, true, _) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::testing::Dir;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    const HEAD: &str = "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label\n";
    const UUID: &str = "5b2a3f4e-0c1d-4e2f-8a9b-1c2d3e4f5a6b";

    /// As `printf` of xl's `list_domains` writes it.
    fn row(name: &str, id: u32, state: &str, uuid: &str, reason: &str) -> String {
        format!(
            "{name:<40} {id:>5} {:>5} {:>5}     {state}  {:>8.1} {uuid} {reason:>8} {:>16}\n",
            4096, 4, 12.5, "-"
        )
    }
    fn dom0() -> String {
        row("Domain-0", 0, "r-----", "00000000-0000-0000-0000-000000000000", "-")
    }

    #[test]
    fn every_state_is_read_for_what_it_proves() {
        for (state, reason, life) in [
            ("r-----", "-", Life::Alive),
            ("-b----", "-", Life::Alive),
            ("------", "-", Life::Alive),
            ("--p---", "-", Life::Alive),
            ("---s--", "0", Life::Dead),
            ("---sr-", "1", Life::Dead),
            ("---ss-", "2", Life::Suspended),
            ("---sc-", "3", Life::Dead),
            ("---sw-", "4", Life::Dead),
            ("---sS-", "5", Life::Suspended),
            ("---s?-", "6", Life::Suspended),
            ("-----d", "-", Life::Dead),
            ("--psrd", "1", Life::Dead),
        ] {
            let text = format!("{HEAD}{}{}", dom0(), row("scvm1", 7, state, UUID, reason));
            let domains = parse(&text).unwrap();
            let want = Domain { id: 7, uuid: UUID.into(), name: "scvm1".into(), life };
            assert_eq!(domains[1], want, "{state}");
        }
    }

    #[test]
    fn names_with_blanks_missing_names_and_newer_columns_are_understood() {
        let newer = HEAD.replace("Security Label", "Security Label      Capabilities");
        let odd = row("my scvm", 7, "-b----", UUID, "-");
        let odd = odd.trim_end().to_string() + " hardware xenstore\n";
        let unnamed = row("(null)", 9, "--p---", "6b2a3f4e-0c1d-4e2f-8a9b-1c2d3e4f5a6b", "-");
        let domains = parse(&format!("{newer}{}{odd}{unnamed}", dom0())).unwrap();
        let names: Vec<&str> = domains.iter().map(|d| d.name.as_str()).collect();
        assert_eq!(names, ["Domain-0", "my scvm", ""]);
    }

    #[test]
    fn what_is_not_the_whole_list_is_no_list() {
        let good = row("scvm1", 7, "r-----", UUID, "-");
        for bad in [
            String::new(),
            "libxl_list_domain failed.\n".into(),
            HEAD.to_string(),
            format!("{HEAD}{good}"),
            format!("{HEAD}{}{}", dom0(), row("scvm1", 7, "rz----", UUID, "-")),
            format!("{HEAD}{}{}", dom0(), row("scvm1", 7, "r---c-", UUID, "-")),
            format!("{HEAD}{}{}", dom0(), row("scvm1", 7, "r----", UUID, "-")),
            format!("{HEAD}{}scvm1   7  4096  4  r-----  1.0\n", dom0()),
            format!("{HEAD}{}garbage\n", dom0()),
            format!("{}{good}", dom0()),
        ] {
            assert!(parse(&bad).is_err(), "{bad}");
        }
    }

    /// A program in xl's place.
    fn stand_in(dir: &Dir, script: &str) -> Hypervisor {
        let command: PathBuf = dir.path().join("xl");
        std::fs::write(&command, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&command, std::fs::Permissions::from_mode(0o755)).unwrap();
        Hypervisor::Xl { domain: "scvm1".into(), command, time_limit_ms: 1000 }
    }

    #[test]
    fn an_answer_counts_only_with_exit_code_0_and_in_time() {
        let dir = Dir::new("xl");
        let list = dir.path().join("list");
        std::fs::write(&list, format!("{HEAD}{}{}", dom0(), row("scvm1", 7, "r-----", UUID, "-"))).unwrap();
        let list = list.display();
        let asked = format!("[ \"$*\" = 'list -v' ] || exit 2; cat {list}");
        assert_eq!(domains(&stand_in(&dir, &asked)).unwrap().len(), 2);
        for (script, word) in [
            (format!("cat {list}; exit 1"), "exit status: 1"),
            (format!("cat {list}; sleep 600"), "did not end within"),
            ("echo 'libxl_list_domain failed.' >&2; exit 1".into(), "libxl_list_domain failed"),
            (format!("cat {list}; yes x | head -c 3000000"), "too much output"),
            (format!("cat {list}; printf '\\377\\n'"), "not UTF-8"),
            (format!("head -c 300 {list}"), "list"),
        ] {
            let why = domains(&stand_in(&dir, &script)).unwrap_err();
            assert!(why.contains(word), "{script}: {why}");
        }
        let missing =
            Hypervisor::Xl { domain: "d".into(), command: dir.path().join("none"), time_limit_ms: 1000 };
        assert!(domains(&missing).unwrap_err().contains("cannot be started"));
    }
}
