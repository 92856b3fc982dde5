"""ptl serve --model model=./model, then python cookbook.py"""

import asyncio

from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.data import FromConversationFileBuilder
from tinker_cookbook.supervised.types import ChatDatasetBuilderCommonConfig

common = ChatDatasetBuilderCommonConfig(
    model_name_for_tokenizer="model",
    renderer_name="qwen3_instruct",
    max_length=512,
    batch_size=16,
    train_on_what=TrainOnWhat.LAST_ASSISTANT_MESSAGE,
)
config = train.Config(
    log_path="out",
    model_name="model",
    recipe_name="peers",
    renderer_name="qwen3_instruct",
    dataset_builder=FromConversationFileBuilder(common_config=common, file_path="data/train.jsonl"),
    learning_rate=5e-4,
    lr_schedule="constant",
    num_epochs=1,
    lora_rank=32,
    save_every=0,
    eval_every=0,
)
asyncio.run(train.main(config))
