"""Losses: the matrix of loss terms, who teaches whom, how much each term counts."""

from multiexit.losses.labels import check_labels as check_labels
from multiexit.losses.matrix import Divergence as Divergence
from multiexit.losses.matrix import loss_matrix as loss_matrix
from multiexit.losses.matrix import row_losses as row_losses
