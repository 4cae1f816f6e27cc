"""The model table: parameters and multiply-adds of every preset beside its paper's."""
