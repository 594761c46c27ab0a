//! The whole spool against a model of it, a queue in memory, through kills and power cuts.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{Range, SpoolLimits, SpoolReader, SpoolWriter};
use crate::position::{OpTime, Ts};

/// Small, so that a few steps fill buffers and segments.
const LIMITS: SpoolLimits =
    SpoolLimits { max_bytes: 64 * 1024, segment_bytes_max: 2048, buffer_bytes_max: 300 };

fn at(i: u32) -> OpTime {
    OpTime::new(Ts::new(5, i), 2)
}

fn entry(i: u32, length: usize) -> Vec<u8> {
    i.to_le_bytes().into_iter().cycle().take(length).collect()
}

/// Sum of the segment files, from the directory itself.
fn bytes_on_disk(dir: &tempfile::TempDir) -> u64 {
    std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

/// What may happen to a spool.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<usize>),
    Sync,
    Read(usize),
    Discard(prop::sample::Index),
    /// The process is killed; with damage, the power fails too.
    Crash(Option<Damage>),
}

/// What a power cut does to bytes that were never synced: cut off, then a byte changed.
#[derive(Debug, Clone)]
struct Damage {
    cut: prop::sample::Index,
    changed: prop::sample::Index,
    bits: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    let damage = (index(), index(), any::<u8>());
    let damage = damage.prop_map(|(cut, changed, bits)| Damage { cut, changed, bits });
    prop_oneof![
        5 => prop::collection::vec(0usize..700, 1..6).prop_map(Step::Append),
        2 => Just(Step::Sync),
        3 => (0usize..3000).prop_map(Step::Read),
        1 => index().prop_map(Step::Discard),
        2 => prop::option::weighted(0.7, damage).prop_map(Step::Crash),
    ]
}

/// The spool as it should be: the entries not discarded, of which the first few are durable.
#[derive(Debug, Default)]
struct Model {
    entries: VecDeque<(OpTime, Vec<u8>)>,
    durable: usize,
    next: u32,
    read_through: u32,
}

struct Run {
    dir: tempfile::TempDir,
    writer: SpoolWriter,
    reader: SpoolReader,
    model: Model,
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (writer, _) = SpoolWriter::open(dir.path(), LIMITS).unwrap();
        let reader = writer.reader(Ts::ZERO);
        Self { dir, writer, reader, model: Model { next: 1, ..Model::default() } }
    }

    fn step(mut self, step: Step) -> Self {
        match step {
            Step::Append(lengths) => self.append(&lengths),
            Step::Sync => {
                self.writer.sync().unwrap();
                self.model.durable = self.model.entries.len();
            }
            Step::Read(bytes_max) => self.read(bytes_max),
            Step::Discard(index) => self.discard(index),
            Step::Crash(damage) => return self.crash(damage),
        }
        self.check();
        self
    }

    fn append(&mut self, lengths: &[usize]) {
        let mut given = Vec::new();
        for length in lengths {
            // Gaps, as a real oplog has them.
            self.model.next += 1 + u32::try_from(length % 3).unwrap();
            given.push((at(self.model.next), entry(self.model.next, *length)));
        }
        self.writer.append(given.iter().map(|(optime, entry)| (*optime, &entry[..]))).unwrap();
        self.model.entries.extend(given);
        // Beginning a segment makes the one before it durable.
        let durable = self.writer.durable_end();
        let now = self.model.entries.iter().take_while(|(optime, _)| Some(*optime) <= durable);
        self.model.durable = self.model.durable.max(now.count());
    }

    fn read(&mut self, bytes_max: usize) {
        let batch = self.reader.read_batch(bytes_max).unwrap();
        let durable = self.model.entries.iter().take(self.model.durable);
        let after = at(self.model.read_through);
        let expected: Vec<_> =
            durable.filter(|(optime, _)| *optime > after).map(|(o, e)| (*o, &e[..])).collect();
        let read: Vec<_> = batch.iter().collect();
        assert!(expected.starts_with(&read), "{expected:?} {read:?}");
        assert_eq!(read.is_empty(), expected.is_empty());
        if let Some(last) = batch.last() {
            self.model.read_through = last.ts.i;
        }
    }

    /// Discards up to some entry that was read, as the daemon does.
    fn discard(&mut self, index: prop::sample::Index) {
        let through = index.index(self.model.read_through as usize + 1);
        let through = at(u32::try_from(through).unwrap());
        self.writer.discard_through(through.ts).unwrap();
        let first = self.writer.position().range().map(|range| range.first);
        while self.model.durable > 0 && first.is_none_or(|first| self.model.entries[0].0 < first) {
            let (gone, _) = self.model.entries.pop_front().unwrap();
            assert!(gone <= through, "{gone} was discarded with {through}");
            self.model.durable -= 1;
        }
    }

    fn crash(mut self, damage: Option<Damage>) -> Self {
        let active = self.writer.active_durable();
        drop(self.writer);
        if let (Some(damage), Some((path, durable))) = (damage, active) {
            let mut bytes = std::fs::read(&path).unwrap();
            let durable = usize::try_from(durable).unwrap();
            bytes.truncate(durable + damage.cut.index(bytes.len() - durable + 1));
            if bytes.len() > durable {
                let at = durable + damage.changed.index(bytes.len() - durable);
                bytes[at] ^= damage.bits;
            }
            std::fs::write(path, bytes).unwrap();
        }
        let (writer, range) = SpoolWriter::open(self.dir.path(), LIMITS).unwrap();
        let left = self.model.entries.iter().take_while(|(o, _)| Some(*o) <= writer.end()).count();
        assert!(left >= self.model.durable, "durable entries were lost");
        self.model.entries.truncate(left);
        self.model.durable = left;
        let ends = self.model.entries.front().zip(self.model.entries.back());
        assert_eq!(range, ends.map(|(first, last)| Range { first: first.0, last: last.0 }));
        let reader = writer.reader(at(self.model.read_through).ts);
        let run = Self { reader, writer, ..self };
        run.check();
        run
    }

    fn check(&self) {
        let last = self.model.entries.back().map(|(optime, _)| *optime);
        assert!(last.is_none() || self.writer.end() == last);
        let unwritten = self.writer.buffered_bytes();
        assert_eq!(self.writer.bytes(), bytes_on_disk(&self.dir) + unwritten);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn behaves_as_a_queue_through_crashes(steps in prop::collection::vec(step(), 1..60)) {
        let mut run = steps.into_iter().fold(Run::new(), Run::step);
        // To the end, whatever happened.
        run = run.step(Step::Sync);
        while run.model.entries.back().is_some_and(|(last, _)| *last > at(run.model.read_through)) {
            run = run.step(Step::Read(2000));
        }
    }
}

/// A reader on another thread sees every entry, whole and in order, while the writer writes and discards.
#[test]
fn reads_on_another_thread_while_writing() {
    const ENTRIES: u32 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let (mut writer, _) = SpoolWriter::open(dir.path(), LIMITS).unwrap();
    let mut reader = writer.reader(Ts::ZERO);
    let read_through = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while last < ENTRIES {
                for (optime, bytes) in reader.read_batch(700).unwrap().iter() {
                    last += 1;
                    assert_eq!((optime, bytes), (at(last), &entry(last, 100)[..]));
                }
                read_through.store(last, std::sync::atomic::Ordering::Relaxed);
            }
        });
        for i in 1..=ENTRIES {
            writer.append([(at(i), &entry(i, 100)[..])]).unwrap();
            if i % 10 == 0 {
                writer.sync().unwrap();
                let through = read_through.load(std::sync::atomic::Ordering::Relaxed);
                writer.discard_through(at(through).ts).unwrap();
            }
        }
    });
}
