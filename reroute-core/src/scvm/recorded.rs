//! The SCVM's machine as a recording has it.

use super::*;

impl crate::recording::Machine for Scvm {
    const ROLE: &'static str = "scvm";
    type Start = Settings;
    type Input = Input;
    type Effect = Effect;

    fn begin(start: Settings, now: BootNs) -> Scvm {
        Scvm::new(start, now).with_duplicate_watch()
    }

    fn take(&mut self, input: Input, now: BootNs) -> Vec<Effect> {
        self.handle(input, now)
    }
}
