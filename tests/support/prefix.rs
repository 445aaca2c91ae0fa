//! Which contents a volume may have that promises prefixes: operations have an
//! order in time, and after a crash the volume holds all of them up to some moment.
//!
//! An operation that was answered before another began comes before it. Two that
//! overlap in time may stand in either order, but two that overlap on the device are
//! never under way together here: each sector has one worker. So a sector's
//! operations are a list, and what the volume holds says for each sector how far in
//! its list the volume got.

/// What a sector holds: 0 for zeros, else a number that no other write used.
pub type Tag = u64;

/// A moment: the count of beginnings and answers so far.
type Moment = u64;

const NEVER: Moment = u64::MAX;

/// See the module's documentation.
#[derive(Debug)]
pub struct Prefix {
    operations: Vec<Operation>,
    sectors: Vec<Sector>,
    now: Moment,
}

#[derive(Debug, Clone, Copy)]
struct Operation {
    begun: Moment,
    answered: Moment,
}

#[derive(Debug, Clone)]
struct Sector {
    /// The operations that it may have had, and what it holds after each.
    history: Vec<(usize, Tag)>,
    /// The least of them that must be there.
    floor: usize,
}

impl Prefix {
    /// A volume of zeros.
    pub fn new(sectors: usize) -> Prefix {
        let zeros = Sector {
            history: vec![(0, 0)],
            floor: 0,
        };
        Prefix {
            operations: vec![Operation {
                begun: 0,
                answered: 0,
            }],
            sectors: vec![zeros; sectors],
            now: 0,
        }
    }

    /// Number of sectors.
    pub fn sectors(&self) -> usize {
        self.sectors.len()
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// An operation begins that gives these sectors these tags. Returns its number.
    pub fn begin(&mut self, changes: impl Iterator<Item = (usize, Tag)>) -> usize {
        let begun = self.tick();
        let operation = self.operations.len();
        self.operations.push(Operation {
            begun,
            answered: NEVER,
        });
        for (sector, tag) in changes {
            self.sectors[sector].history.push((operation, tag));
        }
        operation
    }

    /// It succeeded. One that failed has no answer: it may have happened or not.
    pub fn answer(&mut self, operation: usize) {
        self.operations[operation].answered = self.tick();
    }

    /// A read that no operation on these sectors overlapped returned this.
    pub fn observe(&self, first: usize, seen: &[Tag]) {
        for (at, tag) in (first..).zip(seen) {
            let history = &self.sectors[at].history;
            let answered = history
                .iter()
                .rposition(|(operation, _)| self.operations[*operation].answered != NEVER);
            let possible = &history[answered.unwrap_or(0)..];
            assert!(
                possible.iter().any(|(_, may)| may == tag),
                "sector {at} reads {tag}, not one of {possible:?}"
            );
        }
    }

    /// A flush begins. What it covers: everything answered.
    pub fn cover(&self) -> Vec<usize> {
        let newest = |sector: &Sector| {
            sector
                .history
                .iter()
                .rposition(|(operation, _)| self.operations[*operation].answered != NEVER)
        };
        self.sectors
            .iter()
            .map(|sector| newest(sector).unwrap_or(0))
            .collect()
    }

    /// The flush was answered.
    pub fn durable(&mut self, covered: &[usize]) {
        for (sector, covered) in self.sectors.iter_mut().zip(covered) {
            sector.floor = sector.floor.max(*covered);
        }
    }

    /// What flushes have promised is given up; it must be a prefix still.
    pub fn give_up(&mut self) {
        for sector in &mut self.sectors {
            sector.floor = 0;
        }
    }

    /// After a crash the volume holds this: it must be a prefix, and is the content
    /// from now on.
    pub fn crashed(&mut self, seen: &[Tag]) {
        assert_eq!(seen.len(), self.sectors.len());
        // A moment such that every sector holds its operations up to then. It is
        // enough to try the beginnings.
        let mut moments: Vec<Moment> = self
            .operations
            .iter()
            .map(|operation| operation.begun)
            .collect();
        moments.sort_unstable();
        let fits = |moment: Moment| {
            let sectors = self.sectors.iter().zip(seen).enumerate();
            let mut wrong = sectors.filter(|(_, (sector, tag))| !self.fits(sector, **tag, moment));
            wrong.next().map(|(at, _)| at)
        };
        let wrong: Vec<Option<usize>> = moments.iter().map(|moment| fits(*moment)).collect();
        if wrong.iter().all(Option::is_some) {
            for (at, (sector, tag)) in self.sectors.iter().zip(seen).enumerate() {
                let from = &sector.history[sector.floor..];
                assert!(
                    from.iter().any(|(_, may)| may == tag),
                    "sector {at} holds {tag}, not one of {from:?}: lost, or never written"
                );
            }
            panic!("what is there is no prefix of what was written: {wrong:?}");
        }
        for (sector, tag) in self.sectors.iter_mut().zip(seen) {
            *sector = Sector {
                history: vec![(0, *tag)],
                floor: 0,
            };
        }
        self.operations.truncate(1);
        self.now = 0;
    }

    /// Whether a sector with this tag had all operations that were answered before
    /// the moment, and none that began after it.
    fn fits(&self, sector: &Sector, tag: Tag, moment: Moment) -> bool {
        (sector.floor..sector.history.len()).any(|at| {
            let (operation, may) = sector.history[at];
            let included = self.operations[operation].begun <= moment;
            // One that failed may be left out, and what came after it be there.
            let next = sector.history[at + 1..]
                .iter()
                .map(|(operation, _)| self.operations[*operation].answered)
                .min();
            may == tag && included && next.is_none_or(|answered| answered >= moment)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Prefix;

    fn write(prefix: &mut Prefix, sector: usize, tag: u64) {
        let operation = prefix.begin([(sector, tag)].into_iter());
        prefix.answer(operation);
    }

    #[test]
    fn a_prefix_passes() {
        let mut prefix = Prefix::new(2);
        write(&mut prefix, 0, 1);
        write(&mut prefix, 1, 2);
        prefix.crashed(&[1, 0]);
        prefix.crashed(&[1, 0]);
    }

    #[test]
    #[should_panic(expected = "no prefix")]
    fn a_later_write_without_an_earlier_one_does_not() {
        let mut prefix = Prefix::new(2);
        write(&mut prefix, 0, 1);
        write(&mut prefix, 1, 2);
        prefix.crashed(&[0, 2]);
    }

    #[test]
    #[should_panic(expected = "lost")]
    fn nothing_flushed_is_lost() {
        let mut prefix = Prefix::new(1);
        write(&mut prefix, 0, 1);
        let covered = prefix.cover();
        prefix.durable(&covered);
        prefix.crashed(&[0]);
    }
}
