from .attention import *
from .embeddings import *
from .layers import *
from .transformer import *
