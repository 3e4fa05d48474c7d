"""The receipt: the CDI file of a claim's request, there only while its device is attached."""
