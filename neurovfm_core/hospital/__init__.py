"""A synthetic hospital: patients, findings, heads, scanners, reports and a PACS to pull from.

Everything is drawn from keyed random streams, so the same seed gives the same hospital, byte for
byte. It exists to learn from and to break things with; it is no model of any real patient.
"""
