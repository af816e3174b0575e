//! Writes that arrive when their file is gone.

use super::{Run, SPOTS};
use crate::store::Settings;
use kiln_types::Attr;

impl Run {
    /// A write to a file that is removed arrives late, while its capability still holds.
    pub(super) fn write_late(&mut self) {
        let (wall, lifetime) = (self.world.env.wall().0, Settings::default().capability);
        self.gone.retain(|(_, left)| wall - left.0 < lifetime.as_nanos() as i64);
        let is_removed = |(attr, _): &&(Attr, _)| !self.model.nodes.contains_key(&attr.inode);
        let removed: Vec<_> = self.gone.iter().filter(is_removed).collect();
        if let Some((attr, _)) = self.rng.choice(&removed) {
            let offset = *self.rng.choice(&SPOTS).expect("one");
            let _refused = self.world.chunks.write(attr, attr.epoch, offset, 9);
        }
    }
}
