//! One command on an ESXi host, by the system's ssh: what it is called with, and what its end means.
//!
//! Each command is a login of its own: what works in a change is what was rehearsed, and no connection can have gone
//! stale. The debug output tells how far a login came, and so a wrong key from a refused root.

use crate::command::{self, Ended};
use crate::config::Esxi;
use reroute_core::esxi::{Command, DriveError};
use std::path::Path;
use std::time::Duration;

const SSH: &str = "/usr/bin/ssh";
/// For a connection and sshd's first line.
const CONNECT_S: u32 = 2;
/// For everything.
const LIMIT: Duration = Duration::from_secs(4);
/// Of what people are shown.
const SAID: usize = 300;

pub fn arguments(login: &Esxi, command: Command) -> Vec<String> {
    let options = [
        "BatchMode=yes".to_string(),
        format!("ConnectTimeout={CONNECT_S}"),
        "ConnectionAttempts=1".into(),
        "StrictHostKeyChecking=yes".into(),
        format!("UserKnownHostsFile={}", login.known_hosts.display()),
        "GlobalKnownHostsFile=/dev/null".into(),
        "UpdateHostKeys=no".into(),
        format!("IdentityFile={}", login.identity.display()),
        "IdentitiesOnly=yes".into(),
        "IdentityAgent=none".into(),
        "PreferredAuthentications=publickey".into(),
        "ControlPath=none".into(),
        "ForwardAgent=no".into(),
        "ForwardX11=no".into(),
        "LogLevel=DEBUG1".into(),
    ];
    // `-F`: nobody's own configuration.
    let mut all: Vec<String> = ["-F", "/dev/null", "-T", "-p"].map(String::from).to_vec();
    all.push(login.port.to_string());
    all.extend(options.into_iter().flat_map(|option| ["-o".to_string(), option]));
    all.extend([
        "-l".into(),
        login.user.clone(),
        "--".into(),
        login.address.to_string(),
        command.to_string(),
    ]);
    all
}

/// Runs it; blocks, for the time limit at most.
pub fn run(login: &Esxi, command: Command) -> (Result<String, DriveError>, Duration) {
    let local = |what: String| (Err(DriveError::Local { what }), Duration::ZERO);
    // ssh says of these what is hard to tell from a wrong key.
    for (key, path) in [("identity", &login.identity), ("known_hosts", &login.known_hosts)] {
        if let Err(error) = std::fs::File::open(path) {
            return local(format!("[cluster.hosts.esxi] {key} {} cannot be read: {error}", path.display()));
        }
    }
    match command::run(Path::new(SSH), &arguments(login, command), &[], LIMIT) {
        Ok(ended) => (judge(&ended), ended.took),
        Err(error) => local(format!("{SSH} cannot be started ({error}): install the package openssh-client")),
    }
}

/// What ssh exits with of itself.
const SSH_FAILED: i32 = 255;

fn judge(ended: &Ended) -> Result<String, DriveError> {
    let log = String::from_utf8_lossy(&ended.stderr);
    let progress = |mark: &str| log.lines().any(|l| l.starts_with("debug1: ") && l.contains(mark));
    let said = |mark: &str| log.lines().find(|l| !l.starts_with("debug1: ") && l.contains(mark));
    let logged_in =
        log.lines().any(|l| l.starts_with("Authenticated to ")) || progress("Authentication succeeded");
    let Some(code) = ended.status.map(|s| s.code().unwrap_or(SSH_FAILED)) else {
        let what = format!("killed after {} ms", LIMIT.as_millis());
        return Err(match progress("Connection established") {
            true => DriveError::TimedOut { what },
            false => DriveError::Filtered { what },
        });
    };
    if logged_in && code != SSH_FAILED {
        if code != 0 {
            return Err(DriveError::CommandFailed { code, said: last_words(&log) });
        }
        let unreadable = || DriveError::Unexpected { what: "an output that is no text, or too long".into() };
        return match (ended.cut, String::from_utf8(ended.stdout.clone())) {
            (false, Ok(text)) => Ok(text),
            _ => Err(unreadable()),
        };
    }
    if logged_in {
        return Err(DriveError::Ssh { what: format!("the connection was lost: {}", last_words(&log)) });
    }
    let text = |line: &str| line.chars().filter(|c| !c.is_control()).take(SAID).collect::<String>();
    for mark in
        ["Host key verification failed", "host key is known for", "REMOTE HOST IDENTIFICATION HAS CHANGED"]
    {
        if let Some(line) = said(mark) {
            return Err(DriveError::HostKey { what: text(line) });
        }
    }
    if said("Permission denied (").is_some() || said("Too many authentication failures").is_some() {
        return Err(match progress("Server accepts key") {
            true => DriveError::LoginRefused,
            false => DriveError::KeyRefused,
        });
    }
    if said("Connection refused").is_some() {
        return Err(DriveError::Refused);
    }
    if let Some(line) = said("No route to host").or_else(|| said("Network is unreachable")) {
        return Err(DriveError::Unreachable { what: text(line) });
    }
    if let Some(line) = said("timed out") {
        let what = text(line);
        return Err(match progress("Connection established") {
            true => DriveError::TimedOut { what },
            false => DriveError::Filtered { what },
        });
    }
    Err(DriveError::Ssh { what: last_words(&log) })
}

/// The end of what was said beside ssh's own progress.
fn last_words(log: &str) -> String {
    const OWN: [&str; 5] =
        ["debug1: ", "OpenSSH_", "Authenticated to ", "Transferred: ", "Bytes per second: "];
    let lines = log.lines().filter(|l| !OWN.iter().any(|own| l.starts_with(own)));
    let kept: Vec<&str> = lines.map(str::trim).filter(|l| !l.is_empty()).collect();
    let text = kept.get(kept.len().saturating_sub(3)..).unwrap_or_default().join("; ");
    let text: String = text.chars().filter(|c| !c.is_control()).take(SAID).collect();
    if text.is_empty() { "it said nothing".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    fn login() -> Esxi {
        Esxi {
            address: [192, 168, 85, 13].into(),
            port: 22,
            user: "root".into(),
            identity: "/etc/reroute/key".into(),
            known_hosts: "/etc/reroute/known".into(),
        }
    }

    fn ended(code: Option<i32>, stdout: &str, stderr: &str) -> Ended {
        Ended {
            status: code.map(|code| ExitStatus::from_raw(code << 8)),
            stdout: stdout.into(),
            stderr: stderr.into(),
            cut: false,
            took: Duration::from_millis(100),
        }
    }

    const CONNECTED: &str =
        "debug1: Connecting to 192.168.85.13 [192.168.85.13] port 22.\ndebug1: Connection established.\n";
    const IN: &str = "Authenticated to 192.168.85.13 ([192.168.85.13]:22) using \"publickey\".\ndebug1: Sending command: esxcfg-route -l\n";

    #[test]
    fn nothing_of_an_users_own_is_read_and_the_command_is_one_argument() {
        let to = [10, 10, 85, 22].into();
        let command =
            Command::Replace { address: [192, 168, 33, 2].into(), from: Some([10, 10, 85, 21].into()), to };
        let all = arguments(&login(), command);
        assert_eq!(&all[..5], ["-F", "/dev/null", "-T", "-p", "22"]);
        for option in ["BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes", "ControlPath=none"]
        {
            assert!(all.iter().any(|a| a == option), "{option} in {all:?}");
        }
        let end = &all[all.len() - 5..];
        let line = "esxcfg-route -d 192.168.33.2/32 10.10.85.21 >&2 && esxcfg-route -a 192.168.33.2/32 10.10.85.22 >&2 && esxcfg-route -l";
        assert_eq!(end, ["-l", "root", "--", "192.168.85.13", line]);
    }

    #[test]
    fn each_end_has_its_name() {
        let cases: &[(Option<i32>, String, &str)] = &[
            (Some(0), format!("{CONNECTED}{IN}debug1: Exit status 0\n"), "ok"),
            (Some(1), format!("{CONNECTED}{IN}esxcfg-route: no such route\n"), "command_failed"),
            (Some(127), format!("{CONNECTED}{IN}sh: esxcfg-route: not found\n"), "command_failed"),
            (
                Some(255),
                format!("{CONNECTED}{IN}Connection to 192.168.85.13 closed by remote host.\n"),
                "ssh",
            ),
            (None, "debug1: Connecting to 192.168.85.13 [192.168.85.13] port 22.\n".into(), "filtered"),
            (None, CONNECTED.into(), "timed_out"),
            (
                Some(255),
                "ssh: connect to host 192.168.85.13 port 22: Connection timed out\n".into(),
                "filtered",
            ),
            (
                Some(255),
                format!(
                    "{CONNECTED}Connection timed out during banner exchange\nConnection to 192.168.85.13 port 22 timed out\n"
                ),
                "timed_out",
            ),
            (Some(255), "ssh: connect to host 192.168.85.13 port 22: Connection refused\n".into(), "refused"),
            (
                Some(255),
                "ssh: connect to host 192.168.85.13 port 22: No route to host\n".into(),
                "unreachable",
            ),
            (
                Some(255),
                format!(
                    "{CONNECTED}No ED25519 host key is known for 192.168.85.13 and you have requested strict checking.\nHost key verification failed.\n"
                ),
                "host_key",
            ),
            (
                Some(255),
                format!(
                    "{CONNECTED}debug1: Authentications that can continue: publickey\nroot@192.168.85.13: Permission denied (publickey).\n"
                ),
                "key_refused",
            ),
            (
                Some(255),
                format!(
                    "{CONNECTED}debug1: Server accepts key: /etc/reroute/key ED25519 SHA256:x explicit\nroot@192.168.85.13: Permission denied (publickey).\n"
                ),
                "login_refused",
            ),
            (
                Some(255),
                format!("{CONNECTED}kex_exchange_identification: read: Connection reset by peer\n"),
                "ssh",
            ),
        ];
        for (code, stderr, name) in cases {
            let found = judge(&ended(*code, "table\n", stderr));
            let found = found.as_ref().map_or_else(DriveError::name, |_| "ok");
            assert_eq!(found, *name, "{stderr}");
        }
    }

    #[test]
    fn what_the_command_says_cannot_pass_for_the_login() {
        // A remote program that prints what a refused login prints.
        let stderr = format!("{CONNECTED}{IN}Permission denied (publickey).\n");
        let error = judge(&ended(Some(3), "", &stderr)).unwrap_err();
        assert_eq!(
            error,
            DriveError::CommandFailed { code: 3, said: "Permission denied (publickey).".into() }
        );
    }

    #[test]
    fn a_key_file_that_is_not_there_is_named_before_anything_is_tried() {
        let login = Esxi { identity: "/no/such/key".into(), ..login() };
        let (result, _) = run(&login, Command::List);
        let error = result.unwrap_err();
        assert!(error.to_string().contains("identity /no/such/key"), "{error}");
        assert_eq!(error.name(), "local");
    }
}
