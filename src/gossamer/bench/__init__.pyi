from .config import BenchConfig as BenchConfig
from .config import ModelBench as ModelBench
from .driver import run as run
from .plot import save_plot as save_plot
from .results import Absence as Absence
from .results import Measurement as Measurement
from .results import Results as Results
from .table import tables as tables
