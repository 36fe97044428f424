//! Intel's tile unit (AMX): permission, configuration, and the product.

use super::unit::{Block, Operand};
use std::arch::asm;

/// The processor's answer: CPUID leaf 7, AMX-TILE and AMX-BF16.
pub fn detected() -> bool {
    let leaf = std::arch::x86_64::__cpuid_count(7, 0).edx;
    let (bf16, tile) = (1 << 22, 1 << 24);
    leaf & bf16 != 0 && leaf & tile != 0
}

/// Asks Linux for the tile registers of this process; every thread may use them afterwards.
pub fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: a system call with two integers, which asks for a permission.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers of this thread: four results (tmm0 to 3), two left operands (tmm4 and 5), two right ones
/// (tmm6 and 7); released on drop, so that libtorch finds them as it left them: unconfigured.
pub struct Registers {
    /// Bytes of a row of B.
    row_bytes: usize,
}

impl Registers {
    /// Whole tiles, of 16 rows of 64 bytes.
    ///
    /// # Safety
    /// Only where AMX is detected and permitted.
    pub unsafe fn take() -> Self {
        // SAFETY: the caller's.
        unsafe { Self::sized(16, 16) }
    }

    /// A tiles of `rows` rows and B tiles of `columns` columns, 1 to 16 each.
    ///
    /// # Safety
    /// As [`Registers::take`].
    pub unsafe fn sized(rows: usize, columns: usize) -> Self {
        assert!((1..=16).contains(&rows) && (1..=16).contains(&columns), "no tile has this size");
        let row_bytes = 4 * columns;
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(row_bytes as u16);
        config.row_bytes[4..6].fill(64);
        config.rows[..6].fill(rows as u8);
        config.rows[6..8].fill(16);
        // SAFETY: the processor has AMX, and the configuration is a valid one of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack)) };
        Self { row_bytes }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: `take` configured the registers on this thread.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The loop of all products: `load` loads B; `first` and `second` follow the first product of A0 and of A1;
/// `next` moves what else moves along the depth.
macro_rules! product_asm {
    (
        $depth:ident, $a:ident, $b:ident, $out:ident, load [$($load:expr),*],
        first [$($first:expr),*], second [$($second:expr),*], next [$($next:expr),*],
        $($operand:tt)*
    ) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            $($load,)*
            "tdpbf16ps tmm0, tmm4, tmm6",
            $($first,)*
            "tileloadd tmm5, [{a1} + {a_stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            $($second,)*
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {b0}, {b_step}",
            $($next,)*
            "dec {depth}",
            "jnz 2b",
            "tilestored [{out} + {line}*1], tmm0",
            "tilestored [{out} + {line}*1 + 1024], tmm1",
            "tilestored [{out} + {line}*1 + 2048], tmm2",
            "tilestored [{out} + {line}*1 + 3072], tmm3",
            a0 = inout(reg) $a.tiles[0] => _,
            a1 = inout(reg) $a.tiles[1] => _,
            b0 = inout(reg) $b.tiles[0] => _,
            depth = inout(reg) $depth => _,
            a_stride = in(reg) $a.stride,
            a_step = in(reg) $a.step,
            b_step = in(reg) $b.step,
            line = in(reg) 64usize,
            out = in(reg) $out.0.as_mut_ptr(),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            $($operand)*
            options(nostack),
        )
    };
}

/// Asks for the sixteen rows of the tile behind the one at `$at` along the depth.
macro_rules! next_tile {
    ($at:literal, $step:literal, $stride:literal) => {
        concat!(
            "lea {next}, [{",
            $at,
            "} + {",
            $step,
            "}]\n",
            ".rept 16\n",
            "prefetcht0 [{next}]\n",
            "add {next}, {",
            $stride,
            "}\n",
            ".endr"
        )
    };
}

/// out = [a0; a1] · [b0, b1] over `depth` tiles of 32.
///
/// Four tiles are loaded for four products, which come as fast as the second-level cache answers: each step
/// asks for the next one's tiles.
///
/// # Safety
/// Within the life of [`Registers`] of whole columns; the operands' tiles must be readable over `depth`
/// steps.
#[inline(always)]
pub unsafe fn wide(registers: &Registers, depth: usize, a: Operand, b: Operand, out: &mut Block) {
    debug_assert!(depth > 0 && b.stride == 64 && registers.row_bytes == 64);
    // SAFETY: by the caller's promise all tiles are readable; `out` holds four tiles; prefetching never
    // faults.
    unsafe {
        product_asm!(
            depth, a, b, out,
            load ["tileloadd tmm6, [{b0} + {line}*1]", next_tile!("b0", "b_step", "line")],
            first [
                "tileloadd tmm7, [{b1} + {line}*1]",
                next_tile!("a0", "a_step", "a_stride"),
                "tdpbf16ps tmm1, tmm4, tmm7",
                next_tile!("b1", "b_step", "line")
            ],
            second [next_tile!("a1", "a_step", "a_stride"), "tdpbf16ps tmm3, tmm5, tmm7"],
            next ["add {b1}, {b_step}"],
            b1 = inout(reg) b.tiles[1] => _,
            next = out(reg) _,
        )
    }
}

/// out = [a0; a1] · b0 over `depth` tiles of 32, where B's tiles may have fewer columns. `near`: A lies in the
/// second-level cache already, and is asked for as by [`wide`]; where it comes from memory, that is what
/// takes the time, and its own look-ahead serves it best.
///
/// # Safety
/// Within the life of [`Registers`]; the operands' tiles must be readable over `depth` steps.
#[inline(always)]
pub unsafe fn narrow(
    registers: &Registers,
    depth: usize,
    a: Operand,
    b: Operand,
    near: bool,
    out: &mut Block,
) {
    debug_assert!(depth > 0 && b.stride == registers.row_bytes);
    // SAFETY: as in `wide`.
    unsafe {
        match near {
            false => product_asm!(
                depth, a, b, out,
                load ["tileloadd tmm6, [{b0} + {row}*1]"],
                first [],
                second [],
                next [],
                row = in(reg) b.stride,
            ),
            true => product_asm!(
                depth, a, b, out,
                load ["tileloadd tmm6, [{b0} + {row}*1]", next_tile!("b0", "b_step", "row")],
                first [next_tile!("a0", "a_step", "a_stride")],
                second [next_tile!("a1", "a_step", "a_stride")],
                next [],
                row = in(reg) b.stride,
                next = out(reg) _,
            ),
        }
    }
}
