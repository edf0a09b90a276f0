from sb3_agd.diagnostics.report import imagination_report

__all__ = ["imagination_report"]
