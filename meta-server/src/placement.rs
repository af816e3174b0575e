//! Where new files go.

use kiln_types::LayoutWish;
use kiln_types::{ChainTableId, Code, Error, InodeId, Layout, Redundancy, Result};

/// The newest version of the chain table that new files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// The table.
    pub id: ChainTableId,
    /// Its version.
    pub version: u64,
    /// How many chains it lists.
    pub chains: u32,
}

/// Tells the newest chain table, as the routing information has it.
pub trait Tables: Send + Sync + 'static {
    /// The table; `None` as long as the manager has made none.
    fn newest(&self) -> Option<Table>;
}

/// The layout of a new file.
///
/// With n chains in the table, the stripe is the wish but at most n, and its window begins at `base
/// = (inode * stripe) mod n` (128-bit product): ids are handed out in sequence, so that the windows
/// of neighbours follow each other around the table and every chain gets as many files as any
/// other. The order within the window is drawn for each file (`seed`), which spreads first chunks.
///
/// # Errors
/// `NotReady` without a table, `Invalid` for a wish that no layout can have.
pub(crate) fn place(
    table: Option<Table>,
    inode: InodeId,
    wish: LayoutWish,
    seed: u64,
) -> Result<Layout> {
    let table = table.filter(|table| table.chains > 0).ok_or_else(|| {
        Error::new(Code::NotReady, "there is no chain table yet, so files have no place")
            .with_hint("wait until the configured number of storage servers have registered")
    })?;
    let stripe = wish.stripe.min(table.chains);
    let window = u128::from(inode.0) * u128::from(stripe) % u128::from(table.chains);
    let layout = Layout {
        table: table.id,
        table_version: table.version,
        chunk_bytes: wish.chunk_bytes,
        stripe,
        base: window as u32,
        seed,
        redundancy: Redundancy::Replicated,
    };
    layout.validate()?;
    Ok(layout)
}

/// The wish of a request, where it is silent that of the directory, where that is silent the
/// default.
pub(crate) fn combine(
    request: LayoutWish,
    directory: LayoutWish,
    default: LayoutWish,
) -> LayoutWish {
    let first = |values: [u32; 3]| values.into_iter().find(|value| *value != 0).unwrap_or(0);
    LayoutWish {
        chunk_bytes: first([request.chunk_bytes, directory.chunk_bytes, default.chunk_bytes]),
        stripe: first([request.stripe, directory.stripe, default.stripe]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISH: LayoutWish = LayoutWish { chunk_bytes: 1 << 20, stripe: 4 };

    fn table(chains: u32) -> Option<Table> {
        Some(Table { id: ChainTableId(1), version: 3, chains })
    }

    #[test]
    fn neighbours_load_every_chain_alike() {
        for (chains, stripe) in [(12, 4), (10, 4), (7, 3), (3, 8)] {
            let mut load = vec![0; chains as usize];
            for inode in 1000..1000 + u64::from(chains) {
                let wish = LayoutWish { stripe, ..WISH };
                let layout = place(table(chains), InodeId(inode), wish, inode).expect("a layout");
                for index in layout.stripe_order(chains as usize) {
                    load[index] += 1;
                }
            }
            assert!(load.iter().all(|n| *n == load[0]), "{chains} {stripe} {load:?}");
        }
    }

    #[test]
    fn without_a_table_or_with_a_wrong_wish_there_is_no_layout() {
        let code = |table, wish| place(table, InodeId(5), wish, 0).map_err(|e| e.code());
        assert_eq!(code(None, WISH), Err(Code::NotReady));
        assert_eq!(code(table(0), WISH), Err(Code::NotReady));
        assert_eq!(code(table(3), LayoutWish { chunk_bytes: 5, ..WISH }), Err(Code::Invalid));
    }

    #[test]
    fn the_nearest_wish_counts() {
        let (none, directory) = (LayoutWish::default(), LayoutWish { chunk_bytes: 2, stripe: 0 });
        assert_eq!(combine(none, directory, WISH), LayoutWish { chunk_bytes: 2, stripe: 4 });
        assert_eq!(combine(LayoutWish { chunk_bytes: 1, stripe: 9 }, directory, WISH).stripe, 9);
    }
}
