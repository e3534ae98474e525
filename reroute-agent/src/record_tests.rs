//! What a disk takes, and what a recording says of the rest.

use super::*;
use crate::meta::testing::{Dir, small_disk};
use std::os::unix::fs::PermissionsExt;

const NONE: Limits = Limits { longest: u64::MAX, spare: 0 };

fn writer(path: &Path, limits: Limits) -> Writer {
    Writer::new(File::create_new(path).unwrap(), path, limits)
}

/// A line of 1000 bytes with its end.
fn line(i: u64) -> String {
    format!("{i:0999}")
}

fn read(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "half a line: {:?}", &text[text.len() - 20..]);
    text.lines().map(str::to_string).collect()
}

#[test]
fn a_full_disk_is_said_and_lines_go_on_when_there_is_room() {
    small_disk(64, |disk| {
        let (path, other) = (disk.join("record"), disk.join("other"));
        std::fs::write(&other, [1; 32 * 1024]).unwrap();
        let mut writer = writer(&path, NONE);
        for i in 0..50 {
            assert!(writer.take(&line(i)) && writer.flush());
        }
        // 32 lines fit, and what says that 18 did not.
        let found = read(&path);
        assert_eq!(found.len(), 33, "{found:?}");
        assert_eq!((&found[31], &found[32]), (&line(31), &recording::lost_line(18)));
        std::fs::remove_file(&other).unwrap();
        assert!(writer.take(&line(50)) && writer.flush());
        assert_eq!(read(&path)[31..], [line(31), recording::lost_line(18), line(50)]);
    });
}

#[test]
fn a_recording_leaves_room_for_others() {
    small_disk(256, |disk| {
        let path = disk.join("record");
        let mut writer = writer(&path, Limits { spare: 128 * 1024, ..NONE });
        for i in 0..300 {
            assert!(writer.take(&line(i)) && writer.flush());
        }
        std::fs::write(disk.join("logins"), [1; 120 * 1024]).expect("room for others");
        let found = read(&path);
        let lost = 300 - (found.len() as u64 - 1);
        assert!((100..200).contains(&lost), "{lost}");
        assert_eq!(found.last().unwrap(), &recording::lost_line(lost));
    });
}

#[test]
fn a_recording_that_is_long_enough_ends_and_says_so() {
    let dir = Dir::new("record");
    let path = dir.path().join("record");
    let mut writer = writer(&path, Limits { longest: 5500, ..NONE });
    let (sender, queue) = sync_channel(10);
    writer.lost = 3;
    for i in 0..5 {
        assert!(writer.take(&line(i)) && writer.flush());
    }
    sender.send(Item::Line(line(5))).unwrap();
    writer.run(&queue);
    let found = read(&path);
    assert_eq!((found.len(), &found[0]), (7, &recording::lost_line(3)));
    assert_eq!(found[6], recording::ended_line("it may have 5500 bytes"));
}

#[test]
fn what_did_not_fit_into_the_queue_is_said_and_root_alone_reads_it() {
    let dir = Dir::new("record");
    let path = dir.path().join("record");
    let mut sink = Sink::open(&path, line(0)).unwrap();
    sink.lost = 2;
    sink.write(line(1));
    sink.lost = 4;
    drop(sink);
    assert_eq!(read(&path), [line(0), recording::lost_line(2), line(1), recording::lost_line(4)]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}
