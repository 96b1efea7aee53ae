/* Parameters of the attention kernels: int32 fields, laid out once for host (attention.py) and device. */
#pragma once

typedef struct {
  int q_heads;     /* query heads */
  int group;       /* query heads that share a key head */
  int q_len;       /* queries a head */
  int k_len;       /* keys a head */
  int d;           /* elements of a query and a key */
  int dv;          /* elements of a value */
  int causal;      /* 1: query i sees keys up to i + k_len - q_len */
  int q_batch;     /* strides in elements; the last dimension of all has stride 1 */
  int q_head;
  int q_row;
  int k_batch;
  int k_head;
  int k_row;
  int v_batch;
  int v_head;
  int v_row;
  int mask_batch;
  int mask_head;
  int mask_row;
  int mask_key;
  int split_keys;  /* keys that one threadgroup of the vector form goes through */
  int splits;      /* threadgroups that share the keys of a row */
  int rows;        /* of the output: batch * q_heads * q_len */
} AttentionParams;
