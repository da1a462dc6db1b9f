"""Writes tests/data/torch_rng.rs: what torch's CPU generator draws for some seeds. Run with torch 2.11."""
import torch

CASES = [(0, 3072), (1, 12288), (42, 16), (7, 21), (123456789, 5), (2**32 + 3, 100)]
rows, rows64 = [], []
for seed, count in CASES:
    g = torch.Generator().manual_seed(seed % 2**32)
    v = torch.randn([count], generator=g).tolist()
    label = torch.randint(1000, size=[1], generator=g).item()
    n = min(4, count)
    fmt = lambda xs: "&[" + ", ".join(f"{x:.9}" for x in xs) + "]"
    rows.append(f"    ({seed}, {count}, {fmt(v[:n])}, {fmt(v[-n:])}, {label}),")
for seed, count in CASES:
    g = torch.Generator().manual_seed(seed % 2**32)
    v = torch.randn([count], generator=g, dtype=torch.float64).tolist()
    label = torch.randint(1000, size=[1], generator=g).item()
    n = min(4, count)
    fmt = lambda xs: "&[" + ", ".join(f"{x:.17}" for x in xs) + "]"
    rows64.append(f"    ({seed}, {count}, {fmt(v[:n])}, {fmt(v[-n:])}, {label}),")
print("// Made by tests/data/gen/torch_rng.py: seed, count, first and last of randn(count), then randint(1000).")
print("#[allow(clippy::excessive_precision, clippy::type_complexity, reason = \"printed by torch\")]")
print("const TORCH_CPU: &[(u64, usize, &[f32], &[f32], u32)] = &[")
print("\n".join(rows))
print("];")
print("/// The same in float64.")
print("#[allow(clippy::excessive_precision, clippy::type_complexity, reason = \"printed by torch\")]")
print("const TORCH_CPU_F64: &[(u64, usize, &[f64], &[f64], u32)] = &[")
print("\n".join(rows64))
print("];")
