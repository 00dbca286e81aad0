// The table behind wgmma.cuh: operand lists and one instruction per width.
//
// Inline assembly wants every accumulator register by name, so each width N (N / 2 registers a thread)
// needs its own statement. Registers come first, then the inputs, so the input numbers depend on N.
#pragma once

// clang-format off

#define DANAUS_REGS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define DANAUS_REGS_16 DANAUS_REGS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define DANAUS_REGS_24 DANAUS_REGS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define DANAUS_REGS_32 DANAUS_REGS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define DANAUS_REGS_40 DANAUS_REGS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define DANAUS_REGS_48 DANAUS_REGS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define DANAUS_REGS_56 DANAUS_REGS_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define DANAUS_REGS_64 DANAUS_REGS_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define DANAUS_REGS_72 DANAUS_REGS_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define DANAUS_REGS_80 DANAUS_REGS_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define DANAUS_REGS_88 DANAUS_REGS_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define DANAUS_REGS_96 DANAUS_REGS_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define DANAUS_REGS_104 DANAUS_REGS_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define DANAUS_REGS_112 DANAUS_REGS_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define DANAUS_REGS_120 DANAUS_REGS_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define DANAUS_REGS_128 DANAUS_REGS_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define DANAUS_SUMS_8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define DANAUS_SUMS_16 DANAUS_SUMS_8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define DANAUS_SUMS_24 DANAUS_SUMS_16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define DANAUS_SUMS_32 DANAUS_SUMS_24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define DANAUS_SUMS_40 DANAUS_SUMS_32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define DANAUS_SUMS_48 DANAUS_SUMS_40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define DANAUS_SUMS_56 DANAUS_SUMS_48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define DANAUS_SUMS_64 DANAUS_SUMS_56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define DANAUS_SUMS_72 DANAUS_SUMS_64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define DANAUS_SUMS_80 DANAUS_SUMS_72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define DANAUS_SUMS_88 DANAUS_SUMS_80, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define DANAUS_SUMS_96 DANAUS_SUMS_88, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define DANAUS_SUMS_104 DANAUS_SUMS_96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define DANAUS_SUMS_112 DANAUS_SUMS_104, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define DANAUS_SUMS_120 DANAUS_SUMS_112, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define DANAUS_SUMS_128 DANAUS_SUMS_120, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

#define DANAUS_WGMMA_TEXT(N, REGS, TYPE, INPUTS, KEEP, REST)                        \
    "{\n.reg .pred p;\nsetp.ne.b32 p, %" #KEEP ", 0;\n"                             \
    "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE                 \
    " {" REGS "}, " INPUTS ", p, 1, 1, " REST ";\n}"

// I0.. are the operand numbers N / 2, N / 2 + 1, ...
#define DANAUS_WGMMA_WIDTH(N, R, I0, I1, I2, I3, I4, I5, I6)                                                        \
    template <>                                                                                                     \
    struct Width<N> {                                                                                               \
        template <class T, int kTransA, int kTransB>                                                                \
        DEVICE static void shared_a(float (&d)[R], u64 a, u64 b, int keep) {                                        \
            if constexpr (T::kIsBf16) {                                                                             \
                asm volatile(DANAUS_WGMMA_TEXT(N, DANAUS_REGS_##R, "bf16", "%" #I0 ", %" #I1, I2, "%" #I3 ", %" #I4) \
                             : DANAUS_SUMS_##R : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));            \
            } else {                                                                                                \
                asm volatile(DANAUS_WGMMA_TEXT(N, DANAUS_REGS_##R, "f16", "%" #I0 ", %" #I1, I2, "%" #I3 ", %" #I4)  \
                             : DANAUS_SUMS_##R : "l"(a), "l"(b), "r"(keep), "n"(kTransA), "n"(kTransB));            \
            }                                                                                                       \
        }                                                                                                           \
        template <class T, int kTransB>                                                                             \
        DEVICE static void register_a(float (&d)[R], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, int keep) {             \
            if constexpr (T::kIsBf16) {                                                                             \
                asm volatile(DANAUS_WGMMA_TEXT(N, DANAUS_REGS_##R, "bf16", "{%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4, I5, "%" #I6) \
                             : DANAUS_SUMS_##R : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(keep), "n"(kTransB)); \
            } else {                                                                                                \
                asm volatile(DANAUS_WGMMA_TEXT(N, DANAUS_REGS_##R, "f16", "{%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4, I5, "%" #I6) \
                             : DANAUS_SUMS_##R : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(keep), "n"(kTransB)); \
            }                                                                                                       \
        }                                                                                                           \
    };

namespace danaus::wgmma {

template <int N>
struct Width;

DANAUS_WGMMA_WIDTH(16, 8, 8, 9, 10, 11, 12, 13, 14)
DANAUS_WGMMA_WIDTH(32, 16, 16, 17, 18, 19, 20, 21, 22)
DANAUS_WGMMA_WIDTH(48, 24, 24, 25, 26, 27, 28, 29, 30)
DANAUS_WGMMA_WIDTH(64, 32, 32, 33, 34, 35, 36, 37, 38)
DANAUS_WGMMA_WIDTH(80, 40, 40, 41, 42, 43, 44, 45, 46)
DANAUS_WGMMA_WIDTH(96, 48, 48, 49, 50, 51, 52, 53, 54)
DANAUS_WGMMA_WIDTH(112, 56, 56, 57, 58, 59, 60, 61, 62)
DANAUS_WGMMA_WIDTH(128, 64, 64, 65, 66, 67, 68, 69, 70)
DANAUS_WGMMA_WIDTH(144, 72, 72, 73, 74, 75, 76, 77, 78)
DANAUS_WGMMA_WIDTH(160, 80, 80, 81, 82, 83, 84, 85, 86)
DANAUS_WGMMA_WIDTH(176, 88, 88, 89, 90, 91, 92, 93, 94)
DANAUS_WGMMA_WIDTH(192, 96, 96, 97, 98, 99, 100, 101, 102)
DANAUS_WGMMA_WIDTH(208, 104, 104, 105, 106, 107, 108, 109, 110)
DANAUS_WGMMA_WIDTH(224, 112, 112, 113, 114, 115, 116, 117, 118)
DANAUS_WGMMA_WIDTH(240, 120, 120, 121, 122, 123, 124, 125, 126)
DANAUS_WGMMA_WIDTH(256, 128, 128, 129, 130, 131, 132, 133, 134)

}  // namespace danaus::wgmma
// clang-format on
