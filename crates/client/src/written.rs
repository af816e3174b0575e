//! What was written through an open file, and what of it the metadata service is told.

use kiln_rpc::v1;
use kiln_types::{Acknowledged, ByteRange, Timestamp, TruncateEpoch};
use parking_lot::Mutex;

/// What was written; it counts under its epoch only.
#[derive(Default)]
pub(crate) struct Written {
    end: u64,
    epoch: TruncateEpoch,
    mtime: Option<Timestamp>,
    acknowledged: Acknowledged,
    /// How far the writes that were acknowledged reach.
    acknowledged_end: u64,
    /// Where writes begin that are under way.
    under_way: Vec<u64>,
    /// See [`Self::set_waiting`].
    waits: bool,
    /// How often something was noted here, and how much of that the metadata service has answered.
    noted: u64,
    reported: u64,
    keeps_set_ids: bool,
}

impl Written {
    /// Nothing yet. `keeps_set_ids`: see [`Options`](crate::Options).
    pub(crate) fn new(keeps_set_ids: bool) -> Self {
        Self { keeps_set_ids, ..Self::default() }
    }

    /// See [`Options`](crate::Options).
    pub(crate) fn keeps_set_ids(&self) -> bool {
        self.keeps_set_ids
    }

    /// How far it was written under `epoch`.
    pub(crate) fn end(&self, epoch: TruncateEpoch) -> u64 {
        if self.epoch == epoch { self.end } else { 0 }
    }

    /// Something is written up to `end`.
    pub(crate) fn note(&mut self, end: u64, epoch: TruncateEpoch, now: Timestamp) {
        if self.epoch != epoch {
            (self.epoch, self.end, self.acknowledged_end) = (epoch, 0, 0);
        }
        (self.end, self.mtime) = (self.end.max(end), Some(now));
        self.noted += 1;
    }

    /// All of `range` was written under `epoch`, of which the metadata service says `dense_end`.
    pub(crate) fn acknowledge(&mut self, range: ByteRange, epoch: TruncateEpoch, dense_end: u64) {
        self.acknowledged.learn(epoch, dense_end);
        self.acknowledged.add(epoch, range);
        if self.epoch == epoch {
            self.acknowledged_end = self.acknowledged_end.max(range.end);
        }
    }

    /// Whether it waits to be told from time to time; answers whether it did before.
    pub(crate) fn set_waiting(&mut self, waits: bool) -> bool {
        std::mem::replace(&mut self.waits, waits)
    }

    /// A write that starts there is under way, until an [`UnderWay`] of it is dropped.
    pub(crate) fn begin(&mut self, start: u64) {
        self.under_way.push(start);
    }

    pub(crate) fn is_unreported(&self) -> bool {
        self.noted != self.reported
    }

    /// How much has been noted.
    pub(crate) fn noted(&self) -> u64 {
        self.noted
    }

    /// What was noted then is answered.
    pub(crate) fn note_reported(&mut self, noted: u64) {
        self.reported = self.reported.max(noted);
    }

    /// All there is to report. Nothing twice: a time that was set since would be lost.
    pub(crate) fn message(&self) -> Option<v1::Written> {
        self.is_unreported().then(|| self.up_to(self.end))
    }

    /// What can be told while writes go on: what was acknowledged, up to the first write that is under
    /// way, so that who reads up to there misses nothing that was written in order. How much has been noted
    /// comes with it if that is all of it.
    pub(crate) fn told(&self) -> Option<(v1::Written, Option<u64>)> {
        if !self.is_unreported() {
            return None;
        }
        let first = self.under_way.iter().min();
        let end = first.map_or(self.acknowledged_end, |first| self.acknowledged_end.min(*first));
        let is_all = self.under_way.is_empty() && end == self.end;
        Some((self.up_to(end), is_all.then_some(self.noted)))
    }

    fn up_to(&self, end: u64) -> v1::Written {
        let (epoch, range) = self.acknowledged.lowest();
        let range = range.filter(|_| epoch == self.epoch).unwrap_or_default();
        v1::Written {
            end,
            epoch: self.epoch.0,
            mtime_ns: self.mtime.map(|time| time.0),
            acknowledged_from: range.start,
            acknowledged_to: range.end,
            keeps_set_ids: self.keeps_set_ids,
        }
    }
}

/// A write that is under way.
pub(crate) struct UnderWay<'a> {
    pub(crate) written: &'a Mutex<Written>,
    pub(crate) start: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let under_way = &mut self.written.lock().under_way;
        if let Some(at) = under_way.iter().position(|start| *start == self.start) {
            under_way.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: TruncateEpoch = TruncateEpoch(2);

    fn acknowledge(written: &mut Written, start: u64, end: u64) {
        written.note(end, EPOCH, Timestamp(1));
        written.acknowledge(ByteRange { start, end }, EPOCH, 0);
    }

    #[test]
    fn what_is_told_ends_before_what_is_under_way() {
        let cell = Mutex::new(Written::default());
        for start in [0, 10, 20] {
            cell.lock().note(start + 10, EPOCH, Timestamp(0));
            cell.lock().begin(start);
        }
        let [zero, ten, twenty] = [0, 10, 20].map(|start| UnderWay { written: &cell, start });
        let told = || cell.lock().told().map(|(written, all)| (written.end, all));
        assert_eq!(told(), Some((0, None)));
        acknowledge(&mut cell.lock(), 20, 30);
        drop(twenty);
        assert_eq!(told(), Some((0, None)), "what lies before is not there yet");
        acknowledge(&mut cell.lock(), 0, 10);
        drop(zero);
        assert_eq!(told(), Some((10, None)));
        // It failed: nobody knows what it left, and nothing goes on behind it.
        drop(ten);
        assert_eq!(told(), Some((30, Some(5))));
        cell.lock().note_reported(5);
        assert_eq!(told(), None);
        assert!(cell.lock().message().is_none());
    }

    #[test]
    fn what_was_not_acknowledged_is_told_at_the_end_only() {
        let mut written = Written::default();
        acknowledge(&mut written, 0, 10);
        written.note(50, EPOCH, Timestamp(2));
        let (told, all) = written.told().expect("a report");
        assert_eq!((told.end, told.acknowledged_to, all), (10, 10, None));
        assert_eq!(written.message().expect("a report").end, 50);
        // Under another epoch nothing of it counts.
        written.note(5, EPOCH.next(), Timestamp(3));
        assert_eq!(written.told().expect("a report").0.end, 0);
    }
}
