"""Language models behind endpoints: the client that judges and the questions' generator share."""
