//! The fuzz targets on stored inputs, and on as many mutations of them as a minute of testing allows.

#![allow(clippy::unwrap_used)]

use reroute_fuzz::TARGETS;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Mutated inputs for each target.
const MUTATIONS: usize = 40_000;
/// Longest of them.
const LONGEST: usize = 4096;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..1 + self.below(6) {
            let at = self.below(input.len());
            let end = (at + 1 + self.below(32)).min(input.len());
            match self.below(8) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.next() as u8,
                2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff, 6, 17, 44][self.below(8)],
                3 => drop(input.drain(at..end)),
                4 => {
                    let part = input[at..end].to_vec();
                    input.splice(at..at, part);
                }
                5 => {
                    let bytes: Vec<u8> = (0..1 + self.below(16)).map(|_| self.next() as u8).collect();
                    input.splice(at..at, bytes);
                }
                6 => {
                    let other = &corpus[self.below(corpus.len())];
                    let from = self.below(other.len());
                    input.truncate(at);
                    input.extend(&other[from..]);
                }
                _ => input.truncate(end),
            }
        }
        input.truncate(LONGEST);
        input
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = fuzz().join("corpus").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory).unwrap().map(|f| f.unwrap().path()).collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.into_iter().map(|path| fs::read(path).unwrap()).collect();
    assert!(inputs.len() >= 10, "{} holds inputs", directory.display());
    inputs
}

/// Runs `target`; an input on which it panics is kept for `cargo xtask fuzz`.
fn run((name, body): reroute_fuzz::Target, input: &[u8]) {
    if let Err(panic) = catch_unwind(|| body(input)) {
        let kept = fuzz().join("../target").join(format!("fuzz-{name}-finding"));
        fs::write(&kept, input).unwrap();
        eprintln!("{name}: the input of {} bytes is kept in {}", input.len(), kept.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn stored_and_mutated_inputs_find_nothing() {
    for target in TARGETS {
        let corpus = corpus(target.0);
        corpus.iter().for_each(|input| run(target, input));
        let mut random = Random(7);
        for _ in 0..MUTATIONS {
            run(target, &random.mutate(&corpus));
        }
        println!("{}: {} stored inputs, {MUTATIONS} mutations", target.0, corpus.len());
    }
}

#[test]
fn each_target_has_its_program() {
    let mut programs: Vec<String> = fs::read_dir(fuzz().join("fuzz_targets"))
        .unwrap()
        .map(|f| f.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    programs.sort();
    let mut targets = TARGETS.map(|t| t.0);
    targets.sort();
    assert_eq!(programs, targets);
}
