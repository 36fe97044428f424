//! One body of code compiled for several instruction sets, chosen at run time.
//!
//! The bodies are plain loops without fused multiply-add, and every operation in them is
//! correctly rounded, so all variants give the same bits; only their speed differs.

/// What the machine offers, decided once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    /// With fused multiply-add.
    Avx2,
    Avx512,
}

/// The best instruction set of this machine.
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Isa::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// Defines `fn $name(args)` that runs the inlined body `$body` compiled for the best
/// instruction set of the machine.
macro_rules! dispatched {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$meta])*
        // Not `expect`: most of what is dispatched has few.
        #[allow(clippy::too_many_arguments, reason = "kernels take what they work on, flat")]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::model::kernels::dispatch::{Isa, isa};

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                match isa() {
                    // SAFETY: `isa` answers Avx512 only where the processor has these features.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `isa` answers Avx2 only where the processor has this feature.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Portable => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatched;
