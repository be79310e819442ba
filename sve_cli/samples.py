from sve_cli.data.samples import DataSet, Samples
from sve_cli.data.images import decode_image
