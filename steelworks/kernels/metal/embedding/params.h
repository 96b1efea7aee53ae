/* Parameters of the embedding kernel: int32 fields, laid out once for host (embedding.py) and device. */
#pragma once

typedef struct {
  int ids;           /* how many rows to fetch */
  int table_rows;    /* rows of the table: valid ids are 0 to table_rows - 1 */
  int width;         /* elements of a row */
  int table_stride;  /* elements from one row of the table to the next; its columns are adjacent */
} EmbeddingParams;
