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

/// The instruction set that bodies run in: the machine's best, or a lesser one that a test asked for.
#[inline(always)]
pub fn level() -> Isa {
    #[cfg(test)]
    return levels::asked().min(isa());
    #[cfg(not(test))]
    isa()
}

/// Defines `fn $name(args)`, perhaps generic over the element type, that runs the inlined body
/// `$body` compiled for the best instruction set of the machine.
macro_rules! dispatched {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$T:ident: $bound:ident>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;) => {
        $(#[$meta])*
        // Not `expect`: most of what is dispatched has few.
        #[allow(clippy::too_many_arguments, reason = "kernels take what they work on, flat")]
        $vis fn $name $(<$T: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::model::kernels::dispatch::{Isa, level};

                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$T: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2 $(<$T: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                match level() {
                    // SAFETY: `level` answers Avx512 only where the processor has these features.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: `level` answers Avx2 only where the processor has this feature.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Portable => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub(crate) use dispatched;

/// Levels below the machine's own, for tests: bodies must give the same bits on each.
#[cfg(test)]
pub mod levels {
    use super::Isa;
    use std::cell::Cell;

    thread_local! {
        static ASKED: Cell<Isa> = const { Cell::new(Isa::Avx512) };
    }

    pub(super) fn asked() -> Isa {
        ASKED.get()
    }

    /// What `work` answers on each level up to the machine's best, from the least. Of the calling
    /// thread alone.
    pub fn each<T>(mut work: impl FnMut() -> T) -> Vec<T> {
        let all = [Isa::Portable, Isa::Avx2, Isa::Avx512];
        let answers = all.into_iter().filter(|level| *level <= super::isa()).map(|level| {
            ASKED.set(level);
            work()
        });
        let answers = answers.collect();
        ASKED.set(Isa::Avx512);
        answers
    }
}
