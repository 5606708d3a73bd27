"""From a pre-trained model to a data set of one's own: prompt tuning and few-shot draws."""
