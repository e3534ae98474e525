//! The host's machine as a recording has it.

use super::*;

/// All that a host's machine is told once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub settings: Settings,
    pub record: Record,
    pub notes: Notes,
    /// The domain of the local SCVM and the boot of this node, where the hypervisor can be asked.
    pub hypervisor: Option<(String, u64)>,
}

impl crate::recording::Machine for Machine {
    const ROLE: &'static str = "host";
    type Start = Start;
    type Input = Input;
    type Effect = Effect;

    fn begin(start: Start, now: BootNs) -> Machine {
        let machine = Machine::new(start.settings, start.record, now)
            .with_notes(start.notes)
            .with_duplicate_watch()
            .with_size_checks();
        match start.hypervisor {
            Some((domain, boot)) => machine.with_hypervisor(domain, boot),
            None => machine,
        }
    }

    fn take(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        self.handle(input, now)
    }
}
