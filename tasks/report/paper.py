"""The paper's result tables as data: arXiv 2603.16769v1, Tables 1-4, 8, 10 and 12, and the settings
of Fig. 7.

Each line of a table below is a line of the paper's table, below its dataset.
"""

from dataclasses import dataclass

from gdpo.metrics import table

# Column of the paper -> our metric of the same definition (docs/fidelity.md). The paper's tables
# use MANIQA with the PIPAL weights.
METRICS = {
    "PSNR": "psnr_y",
    "SSIM": "ssim_y",
    "LPIPS": "lpips_alex",
    "FID": "fid",
    "DISTS": "dists",
    "MANIQA": "maniqa_pipal",
    "MUSIQ": "musiq",
    "CLIPIQA": "clipiqa",
    "AFINE": "afine",
}
LOWER_IS_BETTER = frozenset(
    column for column, metric in METRICS.items() if not table.METRICS[metric].higher_is_better
)
# Dataset of the paper -> name of its benchmark in `evaluate.pairs`.
BENCHMARKS = {"DRealSR": "drealsr", "RealSR": "realsr", "DIV2K-val": "div2k_val"}
NAOSD, OURS = "NAOSD", "GDPO-SR"

Results = dict[str, dict[str, dict[str, float]]]  # dataset -> method -> column -> value


@dataclass(frozen=True)
class Published:
    """One table of results: its number, subject and columns, and the values by dataset and method,
    in the paper's order.
    """

    number: int
    subject: str
    columns: tuple[str, ...]
    results: Results


ALL = tuple(METRICS)
NO_FID = tuple(column for column in ALL if column != "FID")

_TABLE_1 = """
= DRealSR
NAOSD 27.97 0.7831 0.2859 140.37 0.2113 0.6041 65.17 0.6886 20.52
GDPO-SR 28.18 0.7839 0.2851 138.87 0.2112 0.6180 65.63 0.7020 18.72
= RealSR
NAOSD 25.25 0.7346 0.2689 114.91 0.2001 0.6459 69.06 0.6617 18.90
GDPO-SR 25.48 0.7328 0.2675 112.13 0.1980 0.6615 69.42 0.6760 17.73
= DIV2K-val
NAOSD 23.83 0.6131 0.2848 25.16 0.1922 0.6297 68.20 0.6758 41.76
GDPO-SR 23.92 0.6117 0.2897 26.44 0.1965 0.6423 68.80 0.6929 41.56
"""
_TABLE_2 = """
= DRealSR
StableSR 28.03 0.7536 0.3284 148.98 0.2269 0.5592 58.51 0.6356 35.77
DiffBIR 26.71 0.6571 0.4557 166.79 0.2748 0.5927 61.07 0.6395 39.42
SeeSR 28.07 0.7684 0.3174 147.39 0.2315 0.6054 65.08 0.6905 22.79
PASD 27.36 0.7073 0.3760 156.13 0.2531 0.6160 64.87 0.6808 33.89
OSEDiff 27.92 0.7835 0.2968 135.30 0.2165 0.5899 64.65 0.6963 21.39
InvSR 25.79 0.7176 0.3471 166.42 0.2381 0.6212 64.92 0.6918 21.69
GDPO-SR 28.18 0.7839 0.2851 138.87 0.2112 0.6180 65.63 0.7020 18.72
= RealSR
StableSR 24.64 0.7080 0.3002 128.51 0.2140 0.6215 65.88 0.6234 27.62
DiffBIR 24.75 0.6567 0.3636 128.99 0.2312 0.6252 64.98 0.6463 32.64
SeeSR 25.15 0.7210 0.3007 125.45 0.2224 0.6441 69.82 0.6707 24.07
PASD 25.21 0.6798 0.3380 124.28 0.2260 0.6493 68.75 0.6620 39.00
OSEDiff 25.15 0.7341 0.2921 123.49 0.2128 0.6326 69.09 0.6693 20.92
InvSR 24.30 0.7145 0.2775 129.52 0.2060 0.6561 67.31 0.6739 16.58
GDPO-SR 25.48 0.7328 0.2675 112.13 0.1980 0.6615 69.42 0.6760 17.73
= DIV2K-val
StableSR 23.26 0.5726 0.3113 24.44 0.2048 0.6190 65.92 0.6771 49.31
DiffBIR 23.64 0.5647 0.3524 30.73 0.2128 0.6209 65.81 0.6704 49.58
SeeSR 23.82 0.6096 0.3160 25.42 0.1971 0.6187 68.50 0.6893 42.18
PASD 23.23 0.5877 0.3634 30.12 0.2200 0.6420 68.41 0.6802 45.19
OSEDiff 23.72 0.6108 0.2941 26.32 0.1976 0.6148 67.97 0.6683 44.69
InvSR 23.10 0.5985 0.3045 28.45 0.1985 0.6406 68.43 0.7118 37.51
GDPO-SR 23.92 0.6117 0.2897 26.44 0.1965 0.6423 68.80 0.6929 41.56
"""
_TABLE_3 = """
= DRealSR
DP2O-SR 23.95 0.6294 0.4412 157.76 0.2763 0.6674 71.09 0.7842 11.39
GDPO-SR 28.18 0.7839 0.2851 138.87 0.2112 0.6180 65.63 0.7020 18.72
= RealSR
DP2O-SR 22.39 0.6467 0.3513 131.79 0.2442 0.7036 73.24 0.7484 8.654
GDPO-SR 25.48 0.7328 0.2675 112.13 0.1980 0.6615 69.42 0.6760 17.73
"""
_TABLE_8 = """
= RealSR
NAOSD 25.27 0.7354 0.2685 116.67 0.1997 0.6458 68.85 0.6620 19.28
GDPO-SR 25.49 0.7336 0.2673 116.03 0.1978 0.6607 69.21 0.6766 18.19
"""
_TABLE_10 = """
= RealSR
150 25.85 0.7499 0.2541 0.1938 0.6521 68.09 0.6331 19.89
250 25.48 0.7328 0.2675 0.1980 0.6615 69.42 0.6760 17.73
350 24.84 0.7074 0.2900 0.2088 0.6646 70.14 0.6994 17.41
"""
_TABLE_12 = """
= DIV2K-val
RealESRGAN 24.29 0.6371 0.3112 37.64 0.2141 0.5501 61.06 0.5277 56.20
BSRGAN 24.58 0.6269 0.3351 44.23 0.2275 0.5247 61.20 0.5071 62.21
LDL 23.83 0.6344 0.3256 42.29 0.2227 0.5350 60.04 0.5180 53.19
GDPO-SR 23.92 0.6117 0.2897 26.44 0.1965 0.6423 68.80 0.6929 41.56
= RealSR
RealESRGAN 25.69 0.7616 0.2727 135.18 0.2063 0.5487 60.18 0.4449 39.53
BSRGAN 26.39 0.7654 0.2670 141.28 0.2121 0.5399 63.21 0.5001 45.69
LDL 25.28 0.7567 0.2766 142.71 0.2121 0.5485 60.82 0.4477 38.43
GDPO-SR 25.48 0.7328 0.2675 112.13 0.1980 0.6615 69.42 0.6760 17.73
= DRealSR
RealESRGAN 28.64 0.8053 0.2847 147.62 0.2089 0.4907 54.18 0.4422 39.97
BSRGAN 28.75 0.8031 0.2883 155.63 0.2142 0.4878 57.14 0.4915 44.87
LDL 28.21 0.8126 0.2815 155.53 0.2132 0.4914 53.85 0.4310 39.06
GDPO-SR 28.18 0.7839 0.2851 138.87 0.2112 0.6180 65.63 0.7020 18.72
"""


def _read(text: str, columns: tuple[str, ...]) -> Results:
    results: Results = {}
    for line in text.strip().splitlines():
        if line.startswith("= "):
            methods = results.setdefault(line[2:], {})
        else:
            method, *values = line.split()
            methods[method] = dict(zip(columns, map(float, values), strict=True))
    return results


TABLES = {
    table.number: table
    for table in (
        Published(1, "GDPO-SR and its base model NAOSD", ALL, _read(_TABLE_1, ALL)),
        Published(2, "GDPO-SR and diffusion-based methods", ALL, _read(_TABLE_2, ALL)),
        Published(3, "GDPO-SR and DP2O-SR", ALL, _read(_TABLE_3, ALL)),
        Published(8, "averages over many noises", ALL, _read(_TABLE_8, ALL)),
        Published(10, "t_add at inference, one GDPO-SR model", NO_FID, _read(_TABLE_10, NO_FID)),
        Published(12, "GDPO-SR and GAN-based methods", ALL, _read(_TABLE_12, ALL)),
    )
}

# Table 4, by row: 10^9 parameters, seconds for a 512 x 512 image (mean of 100), and "FLOPs" in
# 10^12, which are multiply-accumulates (gdpo.cost.count).
TABLE_4_METHODS = ("StableSR", "DiffBIR", "SeeSR", "PASD", "OSEDiff", "InvSR", "GDPO-SR")
TABLE_4 = {
    "Para.(B)": (1.56, 1.68, 2.51, 2.31, 1.77, 1.33, 1.77),
    "Time(s)": (10.03, 2.72, 4.30, 2.80, 0.11, 0.12, 0.11),
    "FLOPs(T)": (79.94, 24.31, 65.86, 29.13, 2.27, 2.40, 2.27),
}

# Fig. 7: the settings (t_add, t_diff) of NAOSD. (a) shows max - min of PSNR and MUSIQ over 50
# noises on RealSR, (b) their means. The values are drawn, not printed. The text says that both
# ranges grow from the first setting to the third.
FIGURE_7 = ((100, 100), (250, 250), (500, 500), (250, 100))
T_ADD_TABLE_10 = (150, 250, 350)
T_DIFF = 100  # of GDPO-SR
