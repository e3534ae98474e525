//! What is measured: each fault of the lab that must move the login or the path, a planned move, and the way back.

use anyhow::{Context, bail};
use clap::ValueEnum;
use lab::faults::Fault;
use lab::faults::outcomes::{Needs, Outcome};
use lab::options::{Options, ServerKind};
use std::time::Duration;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum System {
    /// Ours.
    Reroute,
    /// The loop that it replaces.
    Legacy,
    /// keepalived with BFD, 10 ms x3.
    Keepalived,
}

impl System {
    pub const ALL: [System; 3] = [System::Reroute, System::Legacy, System::Keepalived];

    pub fn name(self) -> &'static str {
        match self {
            System::Reroute => "reroute",
            System::Legacy => "legacy",
            System::Keepalived => "keepalived",
        }
    }

    /// A trial without a recovery ends after this, and its gap counts as this long.
    pub fn cut_off(self) -> Duration {
        match self {
            System::Reroute | System::Keepalived => Duration::from_secs(10),
            System::Legacy => Duration::from_secs(60),
        }
    }

    /// ... of the way back: the old loop's begins 180 s later.
    pub fn return_cut_off(self) -> Duration {
        match self {
            System::Legacy => Duration::from_secs(180 + 60),
            System::Reroute | System::Keepalived => self.cut_off(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// Of the lab's catalogue, at the first node of its kind.
    Fault(&'static str),
    /// Nothing is wrong; an operator wants the host at scvm2.
    Planned,
    /// This fault, and what is measured begins when it is healed.
    Return(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    pub strike: Strike,
}

const fn case(name: &'static str, strike: Strike) -> Case {
    Case { name, strike }
}

const fn fault(name: &'static str) -> Case {
    case(name, Strike::Fault(name))
}

/// In the order in which they are run and shown.
pub const CASES: &[Case] = &[
    fault("server-killed"),
    fault("server-hung"),
    fault("storage-hung"),
    fault("storage-link-cut"),
    fault("storage-blackhole"),
    fault("one-way-loss"),
    fault("host-storage-cut"),
    fault("mtu-mismatch"),
    fault("scvm-dead-known"),
    fault("scvm-dead"),
    case("planned", Strike::Planned),
    case("return", Strike::Return("storage-link-cut")),
];

impl Case {
    /// A server is left for want of its storage only where another one is seen to reach its own: by its clients.
    pub fn needs_others(&self) -> bool {
        self.strike == Strike::Fault("storage-hung")
    }

    /// Those named, or all. Errors: a name that is none; a fault that the lab has not.
    pub fn wanted(names: &[String]) -> anyhow::Result<Vec<Case>> {
        let find = |name: &String| match CASES.iter().find(|c| c.name == name.trim()) {
            Some(case) => Ok(*case),
            None => {
                let all: Vec<_> = CASES.iter().map(|c| c.name).collect();
                bail!("no fault {name:?} is measured here: there are {}", all.join(", "))
            }
        };
        let cases: Vec<Case> = match names {
            [] => CASES.to_vec(),
            names => names.iter().map(find).collect::<anyhow::Result<_>>()?,
        };
        for case in &cases {
            case.lab("check", ServerKind::default())?;
        }
        Ok(cases)
    }

    /// The lab that its trials need by the table of outcomes, with `server` where they need no other. Errors: the fault
    /// is not in that table.
    pub fn lab(&self, name: &str, server: ServerKind) -> anyhow::Result<Options> {
        let mut options = match self.strike {
            Strike::Planned => Options::named(name).server(server),
            Strike::Fault(fault) | Strike::Return(fault) => {
                let outcome =
                    Outcome::of(fault).with_context(|| format!("{fault} has no outcome in the lab"))?;
                let options = outcome.lab.options(name);
                let options = if outcome.lab == Needs::Ganesha { options.server(server) } else { options };
                Fault::find(fault)?.check(&options)?;
                options
            }
        };
        options.faults_stand = true;
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_case_is_in_the_labs_catalogue() {
        let all = Case::wanted(&[]).expect("all of them");
        assert_eq!(all.len(), CASES.len());
        let names: BTreeSet<_> = all.iter().map(|c| c.name).collect();
        assert_eq!(names.len(), CASES.len());
        assert!(Case::wanted(&["server-hungry".into()]).unwrap_err().to_string().contains("server-hung,"));
        assert_eq!(Case::wanted(&["planned".into(), "return".into()]).expect("two").len(), 2);
    }
}
