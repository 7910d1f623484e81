"""Episodes as TFDS datasets of RLDS's form; importing `human_video` registers its builders."""
