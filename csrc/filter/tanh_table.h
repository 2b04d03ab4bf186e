// tanh by a table of polynomials: for the bf16 mode, whose states are rounded to 9 bits in each step anyway.
#pragma once

namespace greedynas::filter {

// Piece i is where |x| rounds to i sixths. There tanh |x| is about c[0] + c[1] |x| + c[2] x^2: minimax in absolute
// error (4.3e-5), and in the first piece in relative error (2.9e-4), so that small states keep their digits; found by
// iteratively reweighted least squares. Beyond the last piece it stays at tanh(kTanhLimit), 5.5e-5 below 1.
inline constexpr float kTanhPiecesPerUnit = 6.0F;
inline constexpr float kTanhLimit = 5.2475F;  // 31.485 sixths: 31.5 would round to 32, which is looked up as 0
alignas(64) inline constexpr float kTanhCoefficients[3][32] = {
    {0.0F,           -0x1.309446p-10F, -0x1.231478p-7F, -0x1.5e0a34p-6F, -0x1.cc006p-6F, -0x1.0ad062p-6F,
     0x1.5fd0e2p-6F, 0x1.5d376cp-4F,   0x1.5a89fcp-3F,  0x1.0f3fdp-2F,   0x1.74d354p-2F, 0x1.d75ae2p-2F,
     0x1.193478p-1F, 0x1.41c852p-1F,   0x1.64f66cp-1F,  0x1.82d0acp-1F,  0x1.9bb868p-1F, 0x1.b03768p-1F,
     0x1.c0e59ap-1F, 0x1.ce58d4p-1F,   0x1.d91baep-1F,  0x1.e1a926p-1F,  0x1.e86b44p-1F, 0x1.edbb84p-1F,
     0x1.f1e436p-1F, 0x1.f5223cp-1F,   0x1.f7a6fcp-1F,  0x1.f99a3p-1F,   0x1.fb1b8cp-1F, 0x1.fc4434p-1F,
     0x1.fd28p-1F,   0x1.fdd682p-1F},
    {0x1.0012e8p+0F, 0x1.06411ep+0F, 0x1.1638e8p+0F, 0x1.25e0e2p+0F, 0x1.2c14f6p+0F, 0x1.244196p+0F, 0x1.0f4a66p+0F,
     0x1.e25e74p-1F, 0x1.9d919ep-1F, 0x1.585374p-1F, 0x1.18134ep-1F, 0x1.bf5bd8p-2F, 0x1.602efp-2F,  0x1.1224aap-2F,
     0x1.a6ff1ap-3F, 0x1.44049ep-3F, 0x1.ed8cecp-4F, 0x1.7620a8p-4F, 0x1.1a7f1ep-4F, 0x1.a937d2p-5F, 0x1.3f20d2p-5F,
     0x1.dddb94p-6F, 0x1.650316p-6F, 0x1.0a3a4ep-6F, 0x1.8c648ap-7F, 0x1.26a722p-7F, 0x1.b572e8p-8F, 0x1.44505ep-8F,
     0x1.e05146p-9F, 0x1.634c48p-9F, 0x1.068e32p-9F, 0x1.83adcp-10F},
    {-0x1.c5f6b4p-6F,  -0x1.472a5ap-3F,  -0x1.25c206p-2F,  -0x1.72b198p-2F,  -0x1.8912eep-2F,  -0x1.74c828p-2F,
     -0x1.474764p-2F,  -0x1.0fbe8ap-2F,  -0x1.b152c8p-3F,  -0x1.4f6d4p-3F,   -0x1.fc40d8p-4F,  -0x1.7b1c28p-4F,
     -0x1.179cb8p-4F,  -0x1.991d7cp-5F,  -0x1.298d12p-5F,  -0x1.af002cp-6F,  -0x1.373516p-6F,  -0x1.c07198p-7F,
     -0x1.42988ap-7F,  -0x1.cf9c7p-8F,   -0x1.4cdde6p-8F,  -0x1.ddb6a2p-9F,  -0x1.56a756p-9F,  -0x1.eb694p-10F,
     -0x1.604ccep-10F, -0x1.f90fccp-11F, -0x1.69fdf6p-11F, -0x1.036e02p-11F, -0x1.73d4dep-12F, -0x1.0a74b4p-12F,
     -0x1.7de028p-13F, -0x1.11a3dap-13F},
};

// 8 operations, no division.
template <class V>
inline __attribute__((always_inline)) V tanh_by_table(V x) {
  const V size = size_within(x, kTanhLimit);
  const V index = fma(size, V::set(kTanhPiecesPerUnit), V::set(12582912.0F));  // 1.5 * 2^23: the low bits hold i
  const V slope = fma(look_up(kTanhCoefficients[2], index), size, look_up(kTanhCoefficients[1], index));
  return with_sign_of(x, fma(slope, size, look_up(kTanhCoefficients[0], index)));
}

}  // namespace greedynas::filter
