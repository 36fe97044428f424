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

/// The tile registers of this thread, configured as eight tiles of 16 × 64 bytes; released on
/// drop, so that libtorch finds them as it left them: unconfigured.
pub struct Registers(());

impl Registers {
    /// # Safety
    /// Only where AMX is detected and permitted.
    pub unsafe fn take() -> Self {
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: the processor has AMX, and the configuration is a valid one of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack)) };
        Self(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: `take` configured the registers on this thread.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The loop of [`product`] and [`product_ahead`]; `$prefetch` are the lines between the loads.
macro_rules! product_asm {
    ($depth:ident, $a:ident, $b:ident, $out:ident, [$($first:literal),*], [$($second:literal),*] $(, $extra:tt = $kind:ident($class:ident) $value:expr => _)*) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            "tileloadd tmm6, [{b0} + {row}*1]",
            "tileloadd tmm7, [{b1} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            $($first,)*
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {a_stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            $($second,)*
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, {a_step}",
            "add {a1}, {a_step}",
            "add {b0}, {b_step}",
            "add {b1}, {b_step}",
            "dec {depth}",
            "jnz 2b",
            "tilestored [{out} + {row}*1], tmm0",
            "tilestored [{out} + {row}*1 + 1024], tmm1",
            "tilestored [{out} + {row}*1 + 2048], tmm2",
            "tilestored [{out} + {row}*1 + 3072], tmm3",
            a0 = inout(reg) $a.tiles[0] => _,
            a1 = inout(reg) $a.tiles[1] => _,
            b0 = inout(reg) $b.tiles[0] => _,
            b1 = inout(reg) $b.tiles[1] => _,
            depth = inout(reg) $depth => _,
            a_stride = in(reg) $a.stride,
            a_step = in(reg) $a.step,
            b_step = in(reg) $b.step,
            row = in(reg) 64usize,
            out = in(reg) $out.0.as_mut_ptr(),
            $($extra = $kind($class) $value => _,)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// out = [a0; a1] · [b0, b1] over `depth` tiles of 32.
///
/// # Safety
/// Within the life of [`Registers`]; the operands' tiles must be readable over `depth` steps.
#[inline(always)]
pub unsafe fn product(_: &Registers, depth: usize, a: Operand, b: Operand, out: &mut Block) {
    debug_assert!(depth > 0 && b.stride == 64);
    // SAFETY: by the caller's promise all tiles are readable; `out` holds four tiles.
    unsafe { product_asm!(depth, a, b, out, [], []) }
}

/// As [`product`]; meanwhile `ahead[0]` and `ahead[1]` are fetched into the second-level cache,
/// 512 bytes each per tile of depth (any address will do: prefetching never faults).
///
/// # Safety
/// As [`product`].
#[inline(always)]
pub unsafe fn product_ahead(
    _: &Registers,
    depth: usize,
    a: Operand,
    b: Operand,
    ahead: [*const u8; 2],
    out: &mut Block,
) {
    debug_assert!(depth > 0 && b.stride == 64);
    // SAFETY: by the caller's promise all tiles are readable; `out` holds four tiles.
    unsafe {
        product_asm!(
            depth, a, b, out,
            [
                "prefetcht1 [{p0}]",
                "prefetcht1 [{p0} + 64]",
                "prefetcht1 [{p0} + 128]",
                "prefetcht1 [{p0} + 192]",
                "prefetcht1 [{p0} + 256]",
                "prefetcht1 [{p0} + 320]",
                "prefetcht1 [{p0} + 384]",
                "prefetcht1 [{p0} + 448]",
                "add {p0}, 512"
            ],
            [
                "prefetcht1 [{p1}]",
                "prefetcht1 [{p1} + 64]",
                "prefetcht1 [{p1} + 128]",
                "prefetcht1 [{p1} + 192]",
                "prefetcht1 [{p1} + 256]",
                "prefetcht1 [{p1} + 320]",
                "prefetcht1 [{p1} + 384]",
                "prefetcht1 [{p1} + 448]",
                "add {p1}, 512"
            ],
            p0 = inout(reg) ahead[0] => _,
            p1 = inout(reg) ahead[1] => _
        )
    }
}
