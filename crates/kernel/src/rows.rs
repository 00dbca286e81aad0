//! How kernels that work on rows are laid out on a GPU: threads a row, elements a thread.

use danaus_runtime::cuda::{Defines, Launch};
use danaus_tensor::{Error, Result};

/// Layout of a row kernel: `group` threads hold `items` elements each in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowPlan {
    /// Threads of a row: 32 (eight rows a block), 256 or 1024.
    pub group: u32,
    /// Elements of a thread; 0 when the row is too long for registers.
    pub items: u32,
}

/// Most elements of a thread.
const MOST_ITEMS: u32 = 16;

impl RowPlan {
    /// The layout for rows of `cols` elements.
    pub fn new(cols: usize) -> Self {
        let group = match cols {
            0..=512 => 32,
            513..=4096 => 256,
            _ => 1024,
        };
        let items = cols.div_ceil(group as usize).max(1).next_power_of_two();
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        Self { group, items: if items > MOST_ITEMS { 0 } else { items } }
    }

    /// Rows of a block.
    pub fn rows_per_block(self) -> usize {
        if self.group == 32 { 8 } else { 1 }
    }

    /// The layouts that are built ahead for an element type: all, but few for f64, which serves checks.
    pub fn shipped(kind: &str) -> impl Iterator<Item = Self> {
        let checks = kind == "double";
        Self::all().filter(move |plan| !checks || plan.items == 4)
    }

    /// Every layout that [`Self::new`] gives.
    pub fn all() -> impl Iterator<Item = Self> {
        let short = [1, 2, 4, 8, 16].map(|items| Self { group: 32, items });
        let middle = [4, 8, 16].map(|items| Self { group: 256, items });
        let long = [8, 16, 0].map(|items| Self { group: 1024, items });
        short.into_iter().chain(middle).chain(long)
    }

    /// Constants of the kernel.
    pub fn defines(self, kind: &str) -> Defines {
        Defines::new()
            .set("ELEMENT", kind)
            .set("ROW_THREADS", self.group)
            .set("ROW_ITEMS", self.items)
    }

    /// Why kernels of this layout that hold several values an element may spill registers.
    pub fn spills(self, kind: &str) -> Option<&'static str> {
        match (self.group, kind) {
            (1024, "double") => Some("f64 serves checks; 1024 threads have 64 registers each"),
            (1024, _) if self.items == 16 => {
                Some("the longest rows; 1024 threads have 64 registers")
            }
            _ => None,
        }
    }

    /// One group of threads a row.
    ///
    /// # Errors
    /// When there are more blocks than a grid holds.
    pub fn launch(self, op: &'static str, rows: usize) -> Result<Launch> {
        let blocks = rows.div_ceil(self.rows_per_block());
        let blocks = i32::try_from(blocks).map_err(|_| {
            Error::not_on_cuda(op, format!("a tensor of more than {} rows", i32::MAX))
        })?;
        Ok(Launch::linear(blocks as u32, self.group.max(256)))
    }
}

#[cfg(test)]
mod tests {
    use super::RowPlan;

    #[test]
    fn every_row_fits_its_layout_and_every_layout_is_built() {
        for cols in [1, 31, 32, 33, 512, 513, 768, 4096, 4097, 8192, 16384, 16385, 151_936] {
            let plan = RowPlan::new(cols);
            assert!(
                plan.items == 0 || (plan.items * plan.group) as usize >= cols,
                "{cols} {plan:?}"
            );
            assert!(RowPlan::all().any(|built| built == plan), "{cols} {plan:?}");
        }
        assert_eq!(RowPlan::new(16384).items, 16);
        assert_eq!(RowPlan::new(16385).items, 0);
    }
}
